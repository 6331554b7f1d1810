# Writes unequal_df.json: priors of variances with unequal degrees of freedom by maximum likelihood,
# by R's own density, optimiser and limma's loessFit. The limma at hand (3.54.1) has no such prior
# itself; fitFDist is its older one.
# Rscript unequal_df.R   (R 4.2.2, limma 3.54.1, jsonlite), in this folder
suppressMessages({library(limma); library(jsonlite)})
fit <- function(x, d, cov=NULL, pw=rep(1,length(x))) {
  x <- pmax(x, 1e-12*median(x)); z <- log(x)
  e <- z + log(d/2) - digamma(d/2); w <- pw/trigamma(d/2); n <- length(x)
  if (is.null(cov)) mu <- sum(w*e)/sum(w) else {
    span <- min(1, 0.3+0.7*(500/n)^(1/3))
    mu <- loessFit(e, cov, weights=w/quantile(w, .75), min.weight=1e-8, max.weight=1e2, span=span, iterations=1)$fitted }
  obj <- function(u) { d2 <- 2*u/(1-u); s <- exp(mu - (log(d2/2)-digamma(d2/2)))
    -2*sum(pw*(df(x/s, d, d2, log=TRUE) - log(s))) }
  o <- optimize(obj, c(.5,.9998), tol=1e-10); d2 <- 2*o$minimum/(1-o$minimum)
  list(s2_prior=rep_len(exp(mu-(log(d2/2)-digamma(d2/2))), n), df_prior=d2, objective=o$objective)
}
ref <- fromJSON("reference.json")
s2 <- ref$unequal$s2; df <- ref$unequal$df; cov <- ref$covariate
set.seed(3); m <- 400; D <- sample(c(1,2,4,9,15), m, TRUE); L <- runif(m, 2, 12)
S <- exp(.2*(L-7))*(4/rchisq(m,4))*rchisq(m,D)/D
out <- list(plain=fit(s2,df), trend=fit(s2,df,cov), many=list(s2=S, df=D, level=L), many_plain=fit(S,D), many_trend=fit(S,D,L),
  legacy_many=fitFDist(S,D))
write_json(out, "unequal_df.json", digits=NA, auto_unbox=TRUE)
print(c(out$plain$df_prior, out$trend$df_prior, out$many_plain$df_prior, out$many_trend$df_prior, out$legacy_many$df2))
