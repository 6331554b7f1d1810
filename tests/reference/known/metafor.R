suppressMessages(library(metafor))
d <- read.csv("expression.csv"); K <- as.matrix(read.csv("kinship.csv", row.names=1, check.names=FALSE))
d$obs <- seq_len(nrow(d)); d$virus <- relevel(factor(d$virus), "HRV")
genes <- grep("^ENSG", names(d), value=TRUE)
rows <- list()
for (method in c("REML","ML")) for (g in genes) {
  d$y <- d[[g]]
  r <- rma.mv(y ~ virus, V=0, random=list(~1|ptID, ~1|obs), R=list(ptID=K), Rscale=FALSE, data=d, method=method, sparse=FALSE,
              control=list(optimizer="optim", optmethod="BFGS", reltol=1e-15, maxit=5000, REMLf=FALSE))
  rows[[length(rows)+1]] <- data.frame(method=method, gene=g, ptID=r$sigma2[1], residual=r$sigma2[2], intercept=coef(r)[1], virusnone=coef(r)[2], se_intercept=sqrt(vcov(r)[1,1]), se_virusnone=sqrt(vcov(r)[2,2]), loglik=as.numeric(logLik(r)))
}
out <- do.call(rbind, rows); options(digits=15)
write.csv(format(out, digits=15), "metafor.csv", row.names=FALSE, quote=FALSE)
print(out); cat(R.version.string, as.character(packageVersion("metafor")), "\n")
