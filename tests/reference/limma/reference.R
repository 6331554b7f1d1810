# Writes reference.json: moderation by limma of linear models and of given variances.
# Rscript reference.R   (R 4.2.2, limma 3.54.1, statmod 1.5.0, jsonlite)
suppressMessages({library(limma); library(jsonlite)})
set.seed(20260)
m <- 120; n <- 12
group <- rep(0:1, each = 6); age <- rnorm(n)
level <- runif(m, 2, 12)
true <- exp(0.25 * (level - 7)) * 6 / rchisq(m, 6)
Y <- level + matrix(rnorm(m * n), m) * sqrt(true)
Y[1:4, ] <- level[1:4] + matrix(rnorm(4 * n), 4) * sqrt(40 * true[1:4])   # outlying variances
Y[5, 12] <- Y[5, 12] + 60
X <- cbind(Intercept = 1, group = group, age = age)
fit <- lmFit(Y, X)
tables <- function(trend, robust) {
  e <- eBayes(fit, trend = trend, robust = robust)
  joint <- topTable(e, coef = c("group", "age"), number = Inf, sort.by = "none")
  list(trend = trend, robust = robust, s2_prior = rep_len(e$s2.prior, m),
       df_prior = rep_len(e$df.prior, m), s2_post = e$s2.post, df_total = e$df.total,
       t = e$t[, "group"], p = e$p.value[, "group"], F = joint$F, F_p = joint$P.Value)
}
cases <- list(tables(FALSE, FALSE), tables(TRUE, FALSE), tables(FALSE, TRUE), tables(TRUE, TRUE))

# Variances with unequal degrees of freedom, and sets that differ no more than chance, but for one.
df <- rep(c(3, 5, 9, 20), 30)
s2 <- 2 * (5 / rchisq(m, 5)) * rchisq(m, df) / df
s2[7] <- 500
same <- sample(qchisq(ppoints(m), 8)) / 8
one <- replace(same, 3, 9)
given <- function(s2, df, covariate, robust) {
  out <- squeezeVar(s2, df, covariate = covariate, robust = robust)
  list(trend = !is.null(covariate), robust = robust, s2_prior = rep_len(out$var.prior, m),
       df_prior = rep_len(out$df.prior, m), s2_post = out$var.post)
}
squeeze <- list()
for (robust in c(FALSE, TRUE)) for (trend in c(FALSE, TRUE)) {
  covariate <- if (trend) level else NULL
  squeeze <- c(squeeze, list(c(given(s2, df, covariate, robust), set = "unequal")),
                        list(c(given(same, rep(8, m), covariate, robust), set = "same")),
                        list(c(given(one, rep(8, m), covariate, robust), set = "one")))
}
write_json(list(Y = Y, X = unname(X), cases = cases, covariate = level, unequal = list(s2 = s2, df = df),
                same = list(s2 = same, df = rep(8, m)),
                one = list(s2 = one, df = rep(8, m)), squeeze = squeeze,
                lowess = lowess(level, log(s2), f = 0.4, iter = 3)$y,
                versions = list(R = as.character(getRversion()), limma = as.character(packageVersion("limma")),
                                statmod = as.character(packageVersion("statmod")))),
           "reference.json", digits = NA, auto_unbox = TRUE)
