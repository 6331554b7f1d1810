# Files shared with Python: see exchange.py.

arguments <- commandArgs(trailingOnly = TRUE)
folder <- arguments[1]
features <- as.integer(arguments[2])
out <- arguments[3]
shapes <- read.csv(file.path(folder, "shapes.csv"))

read_matrix <- function(name) {
  shape <- shapes[shapes$name == name, ]
  count <- shape$rows * shape$columns
  values <- readBin(file.path(folder, paste0(name, ".bin")), "double", count)
  matrix(values, shape$rows, shape$columns)
}

# One row per feature; theta is features x parameters, in the order of the terms, residual last.
write_answers <- function(seconds, setup, loglik, theta, converged) {
  colnames(theta) <- paste0("theta", seq_len(ncol(theta)))
  table <- data.frame(
    seconds = seconds, setup = setup, loglik = loglik, converged = as.integer(converged)
  )
  table <- cbind(table, theta)
  write.csv(format(table, digits = 17, trim = TRUE), out, row.names = FALSE, quote = FALSE)
}
