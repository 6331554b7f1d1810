# emmeans: single-step adjusted p-values and limits of contrasts, with Satterthwaite degrees of
# freedom by lmerTest; the fit is not timed.

source(file.path(Sys.getenv("FLASHMM_BENCHMARK_SCRIPTS"), "common.R"))
suppressPackageStartupMessages({
  library(lmerTest)
  library(emmeans)
})

model <- read_model()
data <- model$data
contrasts <- read_matrix("contrasts")
seconds <- loglik <- numeric(features)
theta <- NULL
df <- matrix(NA, features, nrow(contrasts))
satterthwaite <- function(k, dfargs) contest1D(dfargs$fit, k, ddf = "Satterthwaite")$df
for (j in seq_len(features)) {
  data$y <- model$Y[j, ]
  fit <- quiet(lme4::lmer(model$formula, data))
  seconds[j] <- system.time({
    tested <- quiet(as_lmerModLmerTest(fit))
    object <- emmobj(
      bhat = lme4::fixef(fit), V = as.matrix(vcov(fit)), linfct = contrasts,
      levels = list(contrast = seq_len(nrow(contrasts))),
      dffun = satterthwaite, dfargs = list(fit = tested)
    )
    table <- quiet(as.data.frame(summary(object, infer = c(TRUE, TRUE), adjust = "mvt")))
  })[["elapsed"]]
  df[j, ] <- table$df
  loglik[j] <- as.numeric(logLik(fit))
  theta <- rbind(theta, variances(fit, model$terms))
}
write_answers(seconds, 0, loglik, theta, TRUE, df)
