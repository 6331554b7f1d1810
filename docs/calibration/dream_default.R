# p-values of dream and eBayes with their defaults: samples.csv and responses.bin (features by samples)
# of a folder -> p.bin, the group's first, then the condition's. Called by dream_default.py.
arguments <- commandArgs(trailingOnly = TRUE)
folder <- arguments[1]
m <- as.integer(arguments[2])
suppressPackageStartupMessages(library(variancePartition))
samples <- read.csv(file.path(folder, "samples.csv"))
Y <- matrix(
  readBin(file.path(folder, "responses.bin"), "double", m * nrow(samples), endian = "little"),
  nrow = m, byrow = TRUE,
  dimnames = list(paste0("g", seq_len(m)), paste0("c", seq_len(nrow(samples))))
)
rownames(samples) <- colnames(Y)
model <- as.formula(paste("~ group + condition +", arguments[3]))
fit <- suppressWarnings(eBayes(dream(Y, model, samples, BPPARAM = BiocParallel::SerialParam())))
# Features that dream could not fit are left out of its table.
p <- matrix(NA_real_, m, 2, dimnames = list(rownames(Y), NULL))
p[rownames(fit$p.value), ] <- fit$p.value[, c("groupB", "condition")]
writeBin(as.vector(p), file.path(folder, "p.bin"), endian = "little")
