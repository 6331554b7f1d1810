# Makes tests.json: run in this folder as  Rscript reference.R
# Joint tests and type III tables by lmerTest (Satterthwaite) and pbkrtest (Kenward-Roger).
library(lme4)
library(lmerTest)
library(jsonlite)

factors <- read.csv("../emmeans/factors.csv")
factors$week <- factor(factors$week)
control <- lmerControl(optimizer = "bobyqa", optCtrl = list(rhoend = 1e-10))
fit <- function(formula, REML = TRUE) do.call("lmer", list(formula, factors, REML = REML, control = control))
formulas <- list(
  crossed = y ~ trt * site + age + log(size) + week + smoker + (1 | subject),
  slopes = y ~ trt * age + site + (1 | subject) + (0 + age | week),
  no_intercept = y ~ 0 + site + site:trt + age + (1 | subject),
  covariate = y ~ site * log(size) + (1 | subject) + (1 | week)
)
table <- function(fit, ddf) {
  rows <- as.data.frame(anova(fit, type = 3, ddf = ddf))
  cbind(term = rownames(rows), rows)
}
joint <- function(fit, ddf) {
  L <- diag(length(fixef(fit)))[-1, , drop = FALSE][1:3, ]
  as.data.frame(contest(fit, L, joint = TRUE, ddf = ddf))
}
pairs <- list(
  full = y ~ trt * site + age + (1 | subject),
  reduced = y ~ trt + site + age + (1 | subject)
)
ml <- lapply(pairs, fit, REML = FALSE)
result <- list(
  models = lapply(formulas, function(formula) {
    one <- fit(formula)
    list(
      formula = deparse1(formula), coef = names(fixef(one)), estimate = unname(fixef(one)),
      varcomp = as.data.frame(VarCorr(one)), loglik = as.numeric(logLik(one)),
      anova_satterthwaite = table(one, "Satterthwaite"), anova_kr = table(one, "Kenward-Roger"),
      joint_satterthwaite = joint(one, "Satterthwaite"), joint_kr = joint(one, "Kenward-Roger")
    )
  }),
  lr = as.data.frame(anova(ml$full, ml$reduced))
)
write(toJSON(result, digits = NA, auto_unbox = TRUE, pretty = TRUE), "tests.json")
