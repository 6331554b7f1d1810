# Writes reference.json: likelihood-ratio tests of nested fits of sleepstudy by lme4's anova.
# Rscript reference.R   (R 4.2.2, lme4 1.1-31, jsonlite)
suppressMessages({library(lme4); library(jsonlite)})
control <- lmerControl(optimizer = "bobyqa", optCtrl = list(rhoend = 1e-10, maxfun = 1e5))
fit <- function(formula, REML) lmer(formula, sleepstudy, REML = REML, control = control)
test <- function(large, small, REML) {
  a <- anova(fit(large, REML), fit(small, REML), refit = FALSE)
  list(large = deparse(large), small = deparse(small), REML = REML,
       statistic = a$Chisq[2], df = a$Df[2], p = a$`Pr(>Chisq)`[2])
}
full <- Reaction ~ Days + (Days | Subject)
write_json(list(
  tests = list(
    test(full, Reaction ~ 1 + (Days | Subject), FALSE),
    test(full, Reaction ~ Days + (1 | Subject), FALSE),
    test(full, Reaction ~ Days + (1 | Subject), TRUE),
    test(full, Reaction ~ Days + (Days || Subject), TRUE)),
  versions = list(R = as.character(getRversion()), lme4 = as.character(packageVersion("lme4")))),
  "reference.json", digits = NA, auto_unbox = TRUE)
