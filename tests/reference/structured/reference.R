library(nlme); options(digits=15)
ctl <- lmeControl(maxIter=500,msMaxIter=500,opt="optim",reltol=1e-15,msTol=1e-14,tolerance=1e-12,niterEM=200)
set.seed(20)
# a factor with several records per level of a child: cs is identified beside the residual
d <- expand.grid(rep=1:3,f=c("a","b","c"),g=paste0("g",1:14)); 
L <- t(chol(1.3*(0.45*diag(3)+0.55))); b <- L%*%matrix(rnorm(42),3)
d$x <- round(rnorm(nrow(d)),3)
d$y <- round(2+0.3*d$x+b[cbind(as.integer(d$f),as.integer(d$g))]+rnorm(nrow(d),sd=0.9),4)
d <- d[-sort(sample(nrow(d),17)),]
for (m in c("REML","ML")) for (s in c("pdCompSymm","pdIdent","pdDiag")) {
 re <- list(g=switch(s,pdCompSymm=pdCompSymm(~f-1),pdIdent=pdIdent(~f-1),pdDiag=pdDiag(~f-1)))
 fit <- lme(y~x,random=re,data=d,method=m,control=ctl)
 V <- matrix(as.numeric(getVarCov(fit)),3); ci <- try(intervals(fit,which="var-cov")$reStruct$g,silent=TRUE)
 out[[paste(s,m)]] <- list(logLik=as.numeric(logLik(fit)),beta=unname(fixef(fit)),se=unname(sqrt(diag(vcov(fit)))),variance=V[1,1],covariance=V[1,2],V=unname(unclass(matrix(V,3))),sigma2=fit$sigma^2,ranef=unname(as.matrix(ranef(fit)))[1:2,])
 print(s);print(logLik(fit));print(V); print(ci)
}
write.csv(d[c("y","x","f","g")],"structured/levels.csv",row.names=FALSE,quote=FALSE)
library(jsonlite); out$versions<-list(R=R.version.string,nlme=as.character(packageVersion("nlme")))
write(toJSON(out,digits=NA,auto_unbox=TRUE,pretty=TRUE),"structured/nlme.json")
