# Makes variances.json: run in this folder as  Rscript reference.R
# Tests and intervals of variance components by lme4, lmerTest and RLRsim.
library(lme4)
library(RLRsim)
library(jsonlite)

read <- function(name) read.csv(file.path("..", "lme4", paste0(name, ".csv")), colClasses = "character")
sleepstudy <- transform(read("sleepstudy"), Reaction = as.numeric(Reaction), Days = as.numeric(Days))
penicillin <- transform(read("penicillin"), diameter = as.numeric(diameter))
pastes <- transform(read("pastes"), strength = as.numeric(strength))
dyestuff <- transform(read("dyestuff"), Yield = as.numeric(Yield))

control <- lmerControl(
  optimizer = "bobyqa", optCtrl = list(rhoend = 1e-10), check.conv.singular = "ignore"
)
fit <- function(formula, data, REML) lmer(formula, data, REML = REML, control = control)
loglik <- function(object) as.numeric(logLik(object))

# Log-likelihoods with and without a component.
pairs <- list(
  list("sleepstudy", "(Days | Subject)", Reaction ~ Days + (Days | Subject), "Subject[Days]",
       Reaction ~ Days + (1 | Subject)),
  list("sleepstudy", "(Days || Subject)", Reaction ~ Days + (Days || Subject), "Subject[Days]",
       Reaction ~ Days + (1 | Subject)),
  list("sleepstudy", "(Days || Subject)", Reaction ~ Days + (Days || Subject), "Subject",
       Reaction ~ Days + (0 + Days | Subject)),
  list("penicillin", "crossed", diameter ~ 1 + (1 | plate) + (1 | sample), "plate",
       diameter ~ 1 + (1 | sample)),
  list("penicillin", "crossed", diameter ~ 1 + (1 | plate) + (1 | sample), "sample",
       diameter ~ 1 + (1 | plate)),
  list("pastes", "nested", strength ~ 1 + (1 | batch / cask), "batch",
       strength ~ 1 + (1 | batch:cask)),
  list("pastes", "nested", strength ~ 1 + (1 | batch / cask), "batch:cask",
       strength ~ 1 + (1 | batch))
)
tests <- list()
for (pair in pairs) {
  for (REML in c(TRUE, FALSE)) {
    data <- get(pair[[1]])
    tests[[length(tests) + 1]] <- list(
      dataset = pair[[1]], formula = paste(deparse(pair[[3]][[3]]), collapse = ""),
      component = pair[[4]], method = if (REML) "REML" else "ML",
      full = loglik(fit(pair[[3]], data, REML)), null = loglik(fit(pair[[5]], data, REML))
    )
  }
}

# The same tests as lmerTest prints them (chi-square, not the mixture).
printed <- lmerTest::ranova(lmerTest::lmer(Reaction ~ Days + (Days | Subject), sleepstudy, control = control))
ranova <- list(LRT = printed[2, "LRT"], df = printed[2, "Df"], p = printed[2, "Pr(>Chisq)"])

# The exact null distribution, 1e6 draws on a grid of 400.
exact <- list()
for (case in list(list("dyestuff", Yield ~ 1 + (1 | Batch)),
                  list("sleepstudy", Reaction ~ Days + (1 | Subject)))) {
  data <- get(case[[1]])
  reml <- fit(case[[2]], data, TRUE)
  ml <- fit(case[[2]], data, FALSE)
  X <- getME(reml, "X")
  Z <- as.matrix(getME(reml, "Z"))
  set.seed(1)
  draws_reml <- RLRTSim(X, Z, qrX = qr(X), sqrt.Sigma = diag(ncol(Z)), nsim = 1e6, gridlength = 400)
  draws_ml <- LRTSim(X, Z, q = 0, sqrt.Sigma = diag(ncol(Z)), nsim = 1e6, gridlength = 400)
  probabilities <- c(0.7, 0.8, 0.9, 0.95, 0.99, 0.999)
  null <- lm(update(nobars(case[[2]]), . ~ .), data)
  statistic <- max(0, 2 * (loglik(reml) - as.numeric(logLik(null, REML = TRUE))))
  exact[[case[[1]]]] <- list(
    probabilities = probabilities, statistic_reml = statistic,
    statistic_ml = max(0, 2 * (loglik(ml) - loglik(null))),
    zero_reml = mean(draws_reml < 1e-6), zero_ml = mean(draws_ml < 1e-6),
    reml = unname(quantile(draws_reml, probabilities)), ml = unname(quantile(draws_ml, probabilities))
  )
}

# Profile-likelihood intervals of standard deviations, 95 %, from ML fits.
profiles <- list()
for (case in list(
  list("sleepstudy", Reaction ~ Days + (Days | Subject)),
  list("sleepstudy", Reaction ~ Days + (Days || Subject)),
  list("penicillin", diameter ~ 1 + (1 | plate) + (1 | sample)),
  list("pastes", strength ~ 1 + (1 | batch / cask)),
  list("dyestuff", Yield ~ 1 + (1 | Batch))
)) {
  ml <- fit(case[[2]], get(case[[1]]), FALSE)
  limits <- confint(profile(ml, which = "theta_", delta.cutoff = 1 / 32, maxpts = 400), level = 0.95)
  names <- rownames(confint(ml, method = "Wald", oldNames = FALSE, parm = "theta_"))
  profiles[[length(profiles) + 1]] <- list(
    dataset = case[[1]], formula = paste(deparse(case[[2]][[3]]), collapse = ""),
    parameter = names, lower = unname(limits[, 1]), upper = unname(limits[, 2])
  )
}

versions <- sapply(c("lme4", "lmerTest", "RLRsim"), function(name) as.character(packageVersion(name)))
write_json(
  list(R = as.character(getRversion()), versions = as.list(versions), tests = tests, ranova = ranova,
       exact = exact, profiles = profiles),
  "variances.json", digits = NA, auto_unbox = TRUE, pretty = TRUE
)
