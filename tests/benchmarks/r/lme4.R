# lme4: one lmer, then refit with each response. Derivative checks after the fit are off.

source(file.path(Sys.getenv("FLASHMM_BENCHMARK_SCRIPTS"), "common.R"))
suppressPackageStartupMessages(library(lme4))

model <- read_model()
data <- model$data
data$y <- model$Y[1, ]
control <- lmerControl(calc.derivs = FALSE)

setup <- system.time(first <- quiet(lmer(model$formula, data, control = control)))[["elapsed"]]
seconds <- loglik <- numeric(features)
for (j in seq_len(features)) {
  time <- system.time(quiet(refit(first, model$Y[j, ], control = control)))
  seconds[j] <- time[["elapsed"]]
}
# The first response was fitted by lmer: its refit starts at the answer.
if (features > 1) seconds[1] <- NA

# The answers come from lmer, not timed: under REML, refit of lme4 1.1-31 counts n - 1 degrees
# of freedom where lmer counts n - p, so that its optimum is slightly another one.
theta <- matrix(NA, features, length(variances(first, model$terms)))
for (j in seq_len(features)) {
  data$y <- model$Y[j, ]
  fit <- quiet(lmer(model$formula, data, control = control))
  loglik[j] <- as.numeric(logLik(fit))
  theta[j, ] <- variances(fit, model$terms)
}
write_answers(seconds, setup, loglik, theta, TRUE)
