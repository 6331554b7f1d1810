# FLASHMM's lmm on summary statistics: installed, or from a folder with its source.

source(file.path(Sys.getenv("FLASHMM_BENCHMARK_SCRIPTS"), "common.R"))
load_flashmm()

XX <- read_matrix("XX")
ZX <- read_matrix("ZX")
ZZ <- read_matrix("ZZ")
chosen <- seq_len(features)
XY <- read_matrix("XY")[, chosen, drop = FALSE]
ZY <- read_matrix("ZY")[, chosen, drop = FALSE]
Ynorm <- read_matrix("yy")[1, chosen]
sizes <- read_matrix("sizes")[1, ]

few <- 1:min(2, features)
invisible(lmm(XX, XY[, few, drop = FALSE], ZX, ZY[, few, drop = FALSE], ZZ,
  Ynorm = Ynorm[few], n = sizes[1], d = sizes[-1]
))
time <- system.time(
  fit <- lmm(XX, XY, ZX, ZY, ZZ, Ynorm = Ynorm, n = sizes[1], d = sizes[-1])
)[["elapsed"]]

logdet <- as.numeric(determinant(XX)$modulus)
write_answers(
  rep(time / features, features), 0, fit$logLik - logdet / 2, t(fit$theta),
  apply(abs(fit$dlogL), 2, max) <= fit$epsilon
)
