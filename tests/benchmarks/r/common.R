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

# FLASHMM, installed or from a folder with its source.
load_flashmm <- function() {
  if (length(arguments) <= 3) {
    library(FLASHMM)
    return(invisible())
  }
  library(MASS)
  library(Matrix)
  for (file in list.files(file.path(arguments[4], "R"), full.names = TRUE)) source(file)
  compiler::enableJIT(3)
  lmm <<- compiler::cmpfun(lmm)
  varest <<- compiler::cmpfun(varest)
}

# One row per feature; theta is features x parameters, in the order of the terms, residual last;
# df is features x contrasts.
write_answers <- function(seconds, setup, loglik, theta, converged, df = NULL) {
  colnames(theta) <- paste0("theta", seq_len(ncol(theta)))
  table <- data.frame(
    seconds = seconds, setup = setup, loglik = loglik, converged = as.integer(converged)
  )
  table <- cbind(table, theta)
  if (!is.null(df)) {
    colnames(df) <- paste0("df", seq_len(ncol(df)))
    table <- cbind(table, df)
  }
  write.csv(format(table, digits = 17, trim = TRUE), out, row.names = FALSE, quote = FALSE)
}

# What lme4 needs: the model, a data frame without the response, the names of the terms.
read_model <- function() {
  X <- read_matrix("X")
  codes <- read_matrix("codes")
  terms <- readLines(file.path(folder, "terms.txt"))
  data <- as.data.frame(X)
  names(data) <- paste0("x", seq_len(ncol(X)))
  for (i in seq_along(terms)) data[[terms[i]]] <- factor(codes[, i])
  list(
    formula = as.formula(readLines(file.path(folder, "formula.txt")), globalenv()),
    data = data, terms = terms, Y = read_matrix("Y")
  )
}

# theta of a fit by lmer, in our order.
variances <- function(fit, terms) {
  blocks <- lapply(terms, function(term) {
    block <- as.matrix(lme4::VarCorr(fit)[[term]])
    c(diag(block), block[upper.tri(block)])
  })
  c(unlist(blocks), sigma(fit)^2)
}

quiet <- function(expression) suppressMessages(suppressWarnings(expression))
