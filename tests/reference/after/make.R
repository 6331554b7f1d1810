# R 4.2.2, limma 3.54.1, lme4 1.1-31, lmerTest 3.1-3, jsonlite 1.8.4
suppressMessages({library(limma); library(lme4); library(lmerTest); library(jsonlite)})
out <- function(x, file) writeLines(toJSON(x, digits = NA, auto_unbox = TRUE, na = "null"), file)

# ---- limma: 12 features, 16 samples ---------------------------------------------------------
set.seed(17)
samples <- data.frame(group = rep(c("a", "b", "c"), c(6, 5, 5)), x = round(rnorm(16), 3))
Y <- round(matrix(rnorm(12 * 16), 12) * sqrt(6 / rchisq(12, 6)) + outer(1:12, samples$x) / 10, 4)
W <- round(matrix(runif(12 * 16, 0.5, 2), 12), 3)
w <- round(runif(16, 0.5, 2), 3)
rownames(Y) <- rownames(W) <- paste0("f", 1:12)
N <- Y; N[1, 1:2] <- NA; N[2, 9] <- NA; N[3, 9] <- NA
X <- model.matrix(~ group + x, samples)
table_of <- function(fit) {
  fit <- eBayes(fit)
  list(beta = fit$coefficients, se = fit$stdev.unscaled * fit$sigma, sigma = fit$sigma,
       df = fit$df.residual, t = fit$t, p = fit$p.value, df_total = fit$df.total,
       s2_post = fit$s2.post, s2_prior = fit$s2.prior, df_prior = fit$df.prior, F = fit$F,
       F_p = fit$F.p.value)
}
out(list(samples = samples, Y = Y, W = W, w = w, N = N,
         plain = table_of(lmFit(Y, X)), samples_weighted = table_of(lmFit(Y, X, weights = w)),
         weighted = table_of(lmFit(Y, X, weights = W)), missing = table_of(lmFit(N, X))),
    "limma.json")

# ---- lme4 -----------------------------------------------------------------------------------
set.seed(8)
n <- 96
d <- data.frame(A = sample(c("a1", "a2"), n, TRUE), B = sample(c("b1", "b2", "b3"), n, TRUE),
                x = round(rnorm(n), 3), g = rep(paste0("g", 1:12), each = 8),
                h = rep(paste0("h", 1:8), 12), w = round(runif(n, 0.5, 2), 3))
u <- rnorm(12); v <- rnorm(12, sd = 0.6); s <- rnorm(8, sd = 0.7)
d$y <- round(0.4 * (d$A == "a2") + 0.3 * d$x + u[factor(d$g)] + v[factor(d$g)] * d$x +
             s[factor(d$h)] + rnorm(n), 4)
write.csv(d, "crossed.csv", row.names = FALSE)
control <- lmerControl(optimizer = "bobyqa", optCtrl = list(rhoend = 1e-9))
fit <- function(formula, ...) eval(substitute(lmerTest::lmer(formula, d, control = control, ...)))
frame <- function(x) { x <- as.data.frame(x); x$row <- rownames(x); x }
f <- fit(y ~ A * B + x + (1 | g) + (1 | h))
anova_of <- function(f) lapply(c(I = 1, II = 2, III = 3), function(t) frame(anova(f, type = t)))
ml <- fit(y ~ A * B + x + (1 | g) + (1 | h), REML = FALSE)
slopes <- fit(y ~ A * B + x + (1 + x | g) + (1 | h))
weighted <- fit(y ~ A * B + x + (1 | g) + (1 | h), weights = w)
additive <- fit(y ~ A + B + x + (1 | g))
additive_ml <- fit(y ~ A + B + x + (1 | g), REML = FALSE)
s1 <- fit(y ~ x + (1 + x | g))
s1_ml <- fit(y ~ x + (1 + x | g), REML = FALSE)
r2 <- function(f) {
  fixed <- var(as.vector(model.matrix(f) %*% fixef(f)))
  Z <- as.matrix(getME(f, "Z")); L <- as.matrix(getME(f, "Lambda")) * sigma(f)
  random <- mean(rowSums((Z %*% L)^2))
  total <- fixed + random + sigma(f)^2
  list(marginal = fixed / total, conditional = (fixed + random) / total,
       fixed = fixed, random = random, residual = sigma(f)^2)
}
limits <- function(f) { p <- suppressWarnings(profile(f, signames = FALSE)); frame(confint(p)) }
ranova_of <- function(f) frame(ranova(f))
std <- function(f) as.vector(residuals(f, type = "pearson") / (sigma(f) * sqrt(1 - hatvalues(f))))
# Limits of a correlation by the profile of lme4's own criterion, the other parameters by optim.
cor_limits <- function(REML) {
  devfun <- lmer(y ~ x + (1 + x | g), d, REML = REML, devFunOnly = TRUE)
  at <- function(r, start) optim(start, function(s) {
    s <- exp(s); devfun(c(s[1], r * s[2], sqrt(1 - r^2) * s[2]))
  }, method = "Nelder-Mead", control = list(reltol = 1e-14, maxit = 5000))
  best <- optimize(function(r) at(r, c(-0.5, -0.5))$value, c(-0.99, 0.99), tol = 1e-9)
  fall <- function(r) at(r, c(-0.5, -0.5))$value - best$objective - qchisq(0.95, 1)
  list(estimate = best$minimum,
       limits = c(uniroot(fall, c(-0.999, best$minimum), tol = 1e-10)$root,
                  uniroot(fall, c(best$minimum, 0.9999), tol = 1e-10)$root))
}
out(list(
  cor_ml = cor_limits(FALSE), cor_reml = cor_limits(TRUE),
  anova = anova_of(f), anova_ml = anova_of(ml), anova_slopes = anova_of(slopes),
  anova_weighted = anova_of(weighted),
  drop1_F = frame(drop1(f)), drop1_F_additive = frame(drop1(additive)),
  drop1_LRT = frame(drop1(as(additive_ml, "lmerMod"), test = "Chisq")),
  ranova = ranova_of(slopes), ranova_crossed = ranova_of(f),
  r2 = r2(f), r2_slopes = r2(slopes),
  confint_additive = limits(additive_ml), confint_slopes = limits(s1_ml),
  varcorr = as.data.frame(VarCorr(s1)), varcorr_ml = as.data.frame(VarCorr(s1_ml)),
  coef_slopes = frame(coef(s1)$g), coef_crossed = lapply(coef(f), frame),
  predict = list(all = predict(slopes), g = predict(slopes, re.form = ~ (1 + x | g)),
                 g_intercept = predict(slopes, re.form = ~ (1 | g)),
                 h = predict(slopes, re.form = ~ (1 | h)), none = predict(slopes, re.form = NA)),
  residuals = list(pearson = residuals(weighted, type = "pearson"),
                   response = residuals(weighted), standardized = std(weighted),
                   sigma = sigma(weighted))
), "lme4.json")
