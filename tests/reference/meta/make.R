# Wrote metafor.json: R 4.2.2, metafor 3.8-1. Data: dat.bcg and dat.konstantopoulos2011, shipped with metafor (metadat).
library(metafor); library(jsonlite)
dat <- escalc(measure="RR", ai=tpos, bi=tneg, ci=cpos, di=cneg, data=dat.bcg)
ctl <- list(threshold=1e-12)
one <- function(f){ p <- if (ncol(f$X) == 1) predict(f) else predict(f, newmods=c(30)); list(method=f$method,test=f$test,beta=as.numeric(f$beta),se=f$se,zval=f$zval,pval=f$pval,ci_lb=f$ci.lb,ci_ub=f$ci.ub,tau2=f$tau2,se_tau2=f$se.tau2,I2=f$I2,H2=f$H2,QE=f$QE,QEp=f$QEp,QM=f$QM,QMp=f$QMp,llf=as.numeric(logLik(f)),pred=p$pred,pred_se=p$se,pi_lb=p$pi.lb,pi_ub=p$pi.ub,aic=AIC(f))}
uni <- list()
for (m in c("REML","ML")) for (t in c("z","knha")) for (mod in c("~1","~ablat")) uni[[paste(m,t,mod)]] <- one(rma(yi,vi,mods=as.formula(mod),data=dat,method=m,test=t,control=ctl))
hom <- one(rma(yi/8,vi,data=dat,method="REML",control=ctl))
ks <- dat.konstantopoulos2011
mv <- list()
for (m in c("REML","ML")) { f <- rma.mv(yi,vi,random=~1|district/school,data=ks,method=m,control=list(rel.tol=1e-12)); mv[[m]] <- list(beta=as.numeric(f$beta),se=f$se,sigma2=f$sigma2,llf=as.numeric(logLik(f)),QE=f$QE,QEp=f$QEp,zval=f$zval,pval=f$pval)}
write_json(list(bcg=list(yi=as.numeric(dat$yi),vi=dat$vi,ablat=dat$ablat),uni=uni,hom=hom,konst=list(yi=as.numeric(ks$yi),vi=ks$vi,district=ks$district,school=ks$school),mv=mv,versions=list(R=as.character(getRversion()),metafor=as.character(packageVersion("metafor")))),"metafor.json",digits=15,auto_unbox=TRUE)
