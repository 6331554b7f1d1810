# Wrote nlme_missing.json: R 4.2.2, nlme 3.1-162.
library(nlme)
d <- read.csv("orthodont.csv")
d$Subject <- factor(d$Subject)
ctl <- lmeControl(tolerance = 1e-12, msTol = 1e-12, msMaxIter = 500, maxIter = 500, opt = "nlminb")
gone <- list(y = c(3, 17, 50, 51, 52, 88, 101), z = seq(2, 108, by = 9))
cat("{")
first <- TRUE
for (name in names(gone)) for (method in c("REML", "ML")) for (weighted in c(FALSE, TRUE)) {
  part <- d[-gone[[name]], ]
  part$v <- 0.5 + ((as.integer(rownames(part)) - 1) %% 5) / 4
  form <- if (weighted) varComb(varIdent(form = ~ 1 | Sex), varFixed(~ v)) else varIdent(form = ~ 1 | Sex)
  fit <- lme(distance ~ age, random = ~ 1 | Subject, data = part, weights = form, method = method, control = ctl)
  vi <- if (weighted) fit$modelStruct$varStruct[[1]] else fit$modelStruct$varStruct
  ratio <- coef(vi, unconstrained = FALSE, allCoef = TRUE)
  s <- fit$sigma * ratio
  if (!first) cat(",")
  first <- FALSE
  cat(sprintf("\n \"%s %s %s\": {\"logLik\": %.12f, \"beta\": [%.12f, %.12f], \"se\": [%.12f, %.12f], \"subject\": %.12f, \"Male\": %.12f, \"Female\": %.12f}",
    name, method, if (weighted) "weights" else "plain", as.numeric(logLik(fit)), fixef(fit)[1], fixef(fit)[2],
    sqrt(diag(vcov(fit)))[1], sqrt(diag(vcov(fit)))[2], as.numeric(VarCorr(fit)[1, 1]), s["Male"]^2, s["Female"]^2))
}
cat("\n}\n")
