# Makes contrasts.json: run in this folder as  Rscript contrasts.R
# Contrast families, interaction contrasts, slopes and their simultaneous tests by emmeans on fits of lme4.
library(lme4)
library(lmerTest)
library(emmeans)
library(jsonlite)
emm_options(lmer.df = "satterthwaite")

control <- lmerControl(optimizer = "bobyqa", optCtrl = list(rhoend = 1e-10))
fit <- function(formula, data) do.call("lmer", list(formula, data, REML = TRUE, control = control))
cake <- read.csv("cake.csv", colClasses = c("character", "character", "character", "numeric", "character"))
factors <- read.csv(file.path("..", "emmeans", "factors.csv"))
models <- list(
  cake = fit(angle ~ recipe * temp + (1 | recipe:replicate), cake),
  poly = fit(y ~ trt * poly(age, 2) + site * log(size) + (1 | subject), factors),
  powers = fit(y ~ trt * (age + I(age^2)) + smoker + (1 | subject), factors)
)

table_of <- function(object, adjust = "none", side = "=") {
  frame <- as.data.frame(summary(object, infer = c(TRUE, TRUE), adjust = adjust, side = side))
  keep <- c("SE", "df", "t.ratio", "p.value", "lower.CL", "upper.CL")
  estimate <- intersect(names(frame), c("estimate", grep("[.]trend$", names(frame), value = TRUE)))
  labels <- frame[, setdiff(names(frame), c(keep, estimate)), drop = FALSE]
  label <- do.call(paste, c(lapply(labels, as.character), sep = " ; "))
  list(
    label = as.list(unname(label)), estimate = frame[[estimate]], se = frame$SE, df = frame$df,
    p = frame$p.value, lower = frame$lower.CL, upper = frame$upper.CL
  )
}
cases <- list()
families <- emmeans(models$cake, "temp")
for (family in c(
  "pairwise", "revpairwise", "trt.vs.ctrl", "trt.vs.ctrlk", "consec", "mean_chg", "poly", "eff", "del.eff"
)) {
  cases[[family]] <- table_of(contrast(families, family))
}
cases[["ref"]] <- table_of(contrast(families, "trt.vs.ctrl", ref = 3))
both <- emmeans(models$cake, c("recipe", "temp"))
cases[["interaction pairwise poly"]] <- table_of(contrast(both, interaction = c("pairwise", "poly")))
cases[["interaction consec"]] <- table_of(contrast(both, interaction = "consec"))
cases[["interaction eff trt.vs.ctrl"]] <- table_of(contrast(both, interaction = c("eff", "trt.vs.ctrl")))
by_temp <- contrast(emmeans(models$cake, "recipe", by = "temp"), "pairwise")
cases[["tukey by temp"]] <- table_of(by_temp, "tukey")
cases[["scheffe by temp"]] <- table_of(by_temp, "scheffe")
cases[["sidak greater by temp"]] <- table_of(by_temp, "sidak", ">")
set.seed(1)
cases[["mvt greater"]] <- table_of(contrast(families, "trt.vs.ctrl"), "mvt", ">")

# emtrends takes a difference quotient to one side, whose error is proportional to the step: two steps
# tell the derivative.
trend <- function(model, specs, var, ...) {
  wide <- emtrends(models[[model]], specs, var = var, delta.var = 0.02, ...)
  grid <- emtrends(models[[model]], specs, var = var, delta.var = 0.01, ...)
  grid@linfct <- 2 * grid@linfct - wide@linfct
  grid
}
cases[["age by trt"]] <- table_of(trend("poly", "trt", "age"))
cases[["age by trt pairs"]] <- table_of(pairs(trend("poly", "trt", "age")))
cases[["age at by trt"]] <- table_of(trend("poly", c("trt", "age"), "age", at = list(age = c(30, 60))))
cases[["size by site"]] <- table_of(trend("poly", "site", "size"))
cases[["size by site consec"]] <- table_of(contrast(trend("poly", "site", "size"), "consec"))
cases[["size by site tukey"]] <- table_of(pairs(trend("poly", "site", "size")), "tukey")
cases[["age powers"]] <- table_of(trend("powers", "trt", "age", at = list(age = 40)))
cases[["age overall"]] <- table_of(trend("powers", ~1, "age"))
cases$versions <- c(R = as.character(getRversion()), sapply(
  c("lme4", "lmerTest", "emmeans", "mvtnorm"), function(name) as.character(packageVersion(name))
))
writeLines(toJSON(cases, digits = NA, auto_unbox = TRUE, pretty = 1), "contrasts.json")
