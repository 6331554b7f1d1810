library(nlme); library(jsonlite); options(digits=15)
set.seed(21)
# one record at each of some irregular places of a group: exp(place | g) beside the residual is gls
# with corExp and a nugget; with whole places from 0 its correlation of one step is that of ar1
out <- list()
places <- c(0,1,2,4,5,7)
d <- expand.grid(place=places, g=sprintf("g%02d",1:24))
R <- exp(-as.matrix(dist(places))/3); L <- t(chol(1.4*R))
b <- L%*%matrix(rnorm(6*24),6)
d$x <- round(rnorm(nrow(d)),3)
d$y <- round(1-0.4*d$x+b[cbind(match(d$place,places),as.integer(d$g))]+rnorm(nrow(d),sd=0.8),4)
d <- d[-sort(sample(nrow(d),11)),]
for (m in c("REML","ML")) {
 fit <- gls(y~x,data=d,method=m,correlation=corExp(c(3,0.3),form=~place|g,nugget=TRUE),
   control=glsControl(opt="optim",optimMethod="BFGS",maxIter=500,msMaxIter=500,msTol=1e-14,tolerance=1e-12))
 p <- coef(fit$modelStruct$corStruct,unconstrained=FALSE)
 out[[paste("corExp",m)]] <- list(logLik=as.numeric(logLik(fit)),beta=unname(coef(fit)),se=unname(sqrt(diag(vcov(fit)))),
   variance=unname(fit$sigma^2*(1-p[2])),range=unname(p[1]),residual=unname(fit$sigma^2*p[2]))
 # without a nugget: the residual variance of ar1(place | g) goes to zero
 fit <- gls(y~x,data=d,method=m,correlation=corAR1(0.5,form=~place|g),
   control=glsControl(maxIter=500,msMaxIter=500,msTol=1e-14,tolerance=1e-12))
 out[[paste("corAR1",m)]] <- list(logLik=as.numeric(logLik(fit)),variance=fit$sigma^2,
   rho=unname(coef(fit$modelStruct$corStruct,unconstrained=FALSE)),beta=unname(coef(fit)))
}
print(out)
write.csv(d[c("y","x","place","g")],"structured/places.csv",row.names=FALSE,quote=FALSE)
out$versions<-list(R=R.version.string,nlme=as.character(packageVersion("nlme")))
write(toJSON(out,digits=NA,auto_unbox=TRUE,pretty=TRUE),"structured/nlme_own.json")
