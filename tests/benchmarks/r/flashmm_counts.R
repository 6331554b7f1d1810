# FLASHMM from counts: its own sums over all features, then its lmm on the first of them.

source(file.path(Sys.getenv("FLASHMM_BENCHMARK_SCRIPTS"), "common.R"))
load_flashmm()
library(Matrix)

read_numbers <- function(name, what, size) {
  path <- file.path(folder, paste0(name, ".bin"))
  readBin(path, what, file.size(path) / size, size = size)
}

X <- read_matrix("X")
codes <- read_matrix("codes")[, 1]
Z <- sparse.model.matrix(~ 0 + factor(codes))
colnames(Z) <- NULL
indptr <- read_numbers("indptr", "integer", 4)
Y <- new("dgCMatrix",
  i = read_numbers("indices", "integer", 4), p = indptr, x = read_numbers("data", "double", 4),
  Dim = c(as.integer(read_matrix("genes")[1, 1]), length(indptr) - 1L)
)

setup <- system.time({
  Y@x <- log2(Y@x + 1)
  sums <- sslmm(X, Y, Z)
})[["elapsed"]]

chosen <- seq_len(features)
fit_to <- function(chosen) {
  lmm(as.matrix(sums$XX), as.matrix(sums$XY)[, chosen, drop = FALSE], as.matrix(sums$ZX),
    as.matrix(sums$ZY)[, chosen, drop = FALSE], as.matrix(sums$ZZ),
    Ynorm = sums$Ynorm[chosen], n = sums$n, d = ncol(Z)
  )
}
invisible(fit_to(1:min(2, features)))
time <- system.time(fit <- fit_to(chosen))[["elapsed"]]

logdet <- as.numeric(determinant(as.matrix(sums$XX))$modulus)
write_answers(
  rep(time / features, features), setup, fit$logLik - logdet / 2, t(fit$theta),
  apply(abs(fit$dlogL), 2, max) <= fit$epsilon
)
