# Wrote nlme_tight.json: R 4.2.2, nlme 3.1-162.
library(nlme); library(jsonlite)
d <- read.csv("orthodont.csv"); d$Sex <- factor(d$Sex, c("Male","Female"))
ctl <- lmeControl(tolerance=1e-12, msTol=1e-12, maxIter=500, msMaxIter=500, niterEM=200, opt="nlminb", returnObject=TRUE, gradHess=TRUE)
one <- function(r, m) { f <- lme(distance ~ age*Sex, random=r, weights=varIdent(form=~1|Sex), data=d, method=m, control=ctl)
 list(logLik=as.numeric(logLik(f)), beta=as.numeric(fixef(f)), se=as.numeric(sqrt(diag(vcov(f)))), sigma=f$sigma, ratio=as.numeric(coef(f$modelStruct$varStruct, unconstrained=FALSE)), D=unclass(getVarCov(f)), equal=as.numeric(logLik(update(f, weights=NULL))))}
res <- list(slope=one(~age|Subject,"REML"), int=one(~1|Subject,"REML"), ml=one(~1|Subject,"ML"), versions=c(as.character(getRversion()), as.character(packageVersion("nlme"))))
write_json(res, "nlme_tight.json", digits=15, auto_unbox=TRUE)
