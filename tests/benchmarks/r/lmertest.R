# lmerTest: Satterthwaite degrees of freedom of contrasts; the fit is not timed.

source(file.path(Sys.getenv("FLASHMM_BENCHMARK_SCRIPTS"), "common.R"))
suppressPackageStartupMessages(library(lmerTest))

model <- read_model()
data <- model$data
contrasts <- read_matrix("contrasts")
seconds <- loglik <- numeric(features)
theta <- NULL
df <- matrix(NA, features, nrow(contrasts))
for (j in seq_len(features)) {
  data$y <- model$Y[j, ]
  fit <- quiet(lme4::lmer(model$formula, data))
  seconds[j] <- system.time({
    tested <- quiet(as_lmerModLmerTest(fit))
    for (i in seq_len(nrow(contrasts))) {
      df[j, i] <- contest1D(tested, contrasts[i, ], ddf = "Satterthwaite")$df
    }
  })[["elapsed"]]
  loglik[j] <- as.numeric(logLik(fit))
  theta <- rbind(theta, variances(fit, model$terms))
}
write_answers(seconds, 0, loglik, theta, TRUE, df)
