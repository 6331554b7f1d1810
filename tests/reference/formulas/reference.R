# R 4.2, lme4, lmerTest and emmeans: the values in formulas.json.
library(lme4); library(lmerTest); library(emmeans)
emm_options(lmer.df = "satterthwaite", msg.interaction = FALSE)
empty <- read.csv("empty_cell.csv", stringsAsFactors = TRUE)
data(Orthodont, package = "nlme")
ortho <- as.data.frame(Orthodont)[c("distance", "age", "Subject", "Sex")]
ortho$age <- as.integer(ortho$age)
ortho$Subject <- as.character(ortho$Subject)
ortho$female <- ortho$Sex == "Female"
write.csv(ortho[c("distance", "age", "Subject", "female")], "orthodont.csv", row.names = FALSE)

means <- function(m, ...) { t <- summary(emmeans(m, data = empty, ...), infer = c(FALSE, TRUE)); list(mean = t$emmean, se = t$SE, df = t$df, p = t$p.value) }
fit <- function(formula, data) {
  m <- lmer(formula, data, control = lmerControl(optCtrl = list(xtol_abs = 1e-10, ftol_abs = 1e-12)))
  c <- coef(summary(m))
  list(names = rownames(c), beta = c[, 1], se = c[, 2], llf = as.numeric(logLik(m)),
       variances = as.data.frame(VarCorr(m))$vcov, model = m)
}
cases <- list(
  power = fit(distance ~ age + I(age^2) + (1 | Subject), ortho),
  boolean = fit(distance ~ age * female + (1 | Subject), ortho),
  cells = fit(distance ~ 0 + factor(age):female + (1 | Subject), ortho),
  offset = fit(y ~ a + offset(log(x)) + (1 | id), empty),
  offset_two = fit(y ~ b + offset(x^2) + offset(0.5 * x) + (1 | id), empty),
  empty = fit(y ~ a * b + (1 | id), empty)
)
out <- lapply(cases, function(case) {
  m <- case$model; case$model <- NULL
  a <- as.data.frame(anova(m))
  case$anova <- list(terms = rownames(a), F = a[["F value"]], df = a$NumDF)
  case
})
out$offset$means <- means(cases$offset$model, ~ a)
out$empty$cells <- means(cases$empty$model, ~ a * b)
out$empty$means_a <- means(cases$empty$model, ~ a)
out$empty$means_b <- means(cases$empty$model, ~ b)
writeLines(jsonlite::toJSON(out, digits = 12, na = "null", auto_unbox = FALSE), "formulas.json")
