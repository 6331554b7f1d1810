# Makes factors.csv and emmeans.json: run in this folder as  Rscript reference.R
# Marginal means and their contrasts by emmeans on fits of lme4.
library(lme4)
library(lmerTest)
library(emmeans)
library(jsonlite)

# Two treatments at three sites, not balanced; subjects measured several times, at some weeks.
set.seed(20260101)
subjects <- data.frame(
  subject = sprintf("s%02d", 1:24),
  trt = sample(c("A", "B"), 24, replace = TRUE, prob = c(0.4, 0.6)),
  site = sample(c("east", "north", "west"), 24, replace = TRUE, prob = c(0.5, 0.3, 0.2)),
  age = round(runif(24, 20, 70), 1)
)
rows <- subjects[rep(1:24, times = sample(4:8, 24, replace = TRUE)), ]
n <- nrow(rows)
rows$week <- sample(c(1, 2, 4), n, replace = TRUE)
rows$size <- round(exp(rnorm(n, 3, 0.5)), 2)
rows$smoker <- runif(n) < 0.35
effect <- setNames(rnorm(24, 0, 1.2), subjects$subject)
rows$y <- with(rows, 2 + 0.8 * (trt == "B") + 0.5 * (site == "north") - 0.7 * (trt == "B" & site == "west") +
  0.03 * age + 0.4 * log(size) + 0.3 * (week == 4) + 0.2 * smoker) + effect[rows$subject] + rnorm(n)
rows$y <- round(rows$y, 6)
write.csv(rows, "factors.csv", row.names = FALSE)
factors <- read.csv("factors.csv")

read <- function(name) read.csv(file.path("..", "lme4", paste0(name, ".csv")), colClasses = "character")
sleepstudy <- transform(read("sleepstudy"), Reaction = as.numeric(Reaction), Days = as.numeric(Days))
penicillin <- transform(read("penicillin"), diameter = as.numeric(diameter))
pastes <- transform(read("pastes"), strength = as.numeric(strength))

control <- lmerControl(optimizer = "bobyqa", optCtrl = list(rhoend = 1e-10))
fit <- function(formula, data) do.call("lmer", list(formula, data, REML = TRUE, control = control))
models <- list(
  factors = fit(y ~ trt * site + age + log(size) + factor(week) + smoker + (1 | subject), factors),
  sleepstudy = fit(Reaction ~ Days + I(Days^2) + (Days | Subject), sleepstudy),
  penicillin = fit(diameter ~ sample + (1 | plate), penicillin),
  pastes = fit(strength ~ cask + (1 | batch), pastes)
)

table_of <- function(object, mode) {
  frame <- as.data.frame(summary(object, infer = c(TRUE, TRUE), adjust = "none"))
  names(frame)[match(c("SE", "t.ratio", "p.value", "lower.CL", "upper.CL"), names(frame))] <-
    c("se", "t", "p", "lower", "upper")
  frame
}
cases <- list()
add <- function(name, model, specs, by = NULL, at = NULL, weights = "equal", contrast = NULL, ...) {
  tables <- list()
  for (mode in c("satterthwaite", "kenward-roger")) {
    grid <- emmeans(models[[model]], specs, by = by, at = at, weights = weights, lmer.df = mode)
    if (!is.null(contrast)) grid <- contrast(grid, contrast, ...)
    tables[[mode]] <- table_of(grid, mode)
  }
  cases[[name]] <<- c(
    list(model = model, specs = specs, by = by, at = at, weights = weights, contrast = contrast),
    list(tables = tables)
  )
}
add("trt", "factors", "trt")
add("trt by site", "factors", "trt", by = "site")
add("trt and site", "factors", c("trt", "site"))
add("trt proportional", "factors", "trt", weights = "proportional")
add("week", "factors", "week")
add("smoker proportional", "factors", "smoker", weights = "proportional")
add("site at ages by age", "factors", "site", by = "age", at = list(age = c(30, 60)))
add("site at size", "factors", "site", at = list(size = 10, smoker = FALSE))
add("site pairwise by trt", "factors", "site", by = "trt", contrast = "pairwise")
add("site against control", "factors", "site", contrast = "trt.vs.ctrl")
add("week consecutive", "factors", "week", contrast = "consec")
add("site against mean", "factors", "site", weights = "proportional", contrast = "eff")
add("days", "sleepstudy", "Days")
add("days at", "sleepstudy", "Days", at = list(Days = c(0, 4, 9)))
add("days pairwise", "sleepstudy", "Days", at = list(Days = c(0, 4, 9)), contrast = "revpairwise")
add("sample", "penicillin", "sample")
add("sample pairwise", "penicillin", "sample", contrast = "pairwise")
add("cask", "pastes", "cask")
add("cask against mean", "pastes", "cask", contrast = "eff")
writeLines(toJSON(cases, digits = NA, auto_unbox = TRUE, null = "null", pretty = 1), "emmeans.json")
