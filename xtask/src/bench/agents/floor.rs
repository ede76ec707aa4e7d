//! What a handshake costs at the least: its signatures and key exchanges, as OpenSSL does them on one core.

use anyhow::{Context, Result};

use crate::run;

/// Each end signs once, checks the other's signature and the two certificates below the root that both know, and makes
/// and uses a key of X25519.
const SIGNS: f64 = 1.0;
const CHECKS: f64 = 3.0;
const EXCHANGES: f64 = 2.0;

/// Handshakes a second that one core can carry one end of.
pub fn handshakes() -> Result<f64> {
    let told = run::output(&mut run::words("openssl speed -seconds 1 -mr ecdsap256 ecdhx25519"))?;
    of(&told).context("`openssl speed` does not tell what it measured")
}

fn of(told: &str) -> Option<f64> {
    let fields = |kind: &str| {
        let line = told.lines().find(|line| line.starts_with(kind))?;
        Some(line.split(':').filter_map(|field| field.parse().ok()).collect::<Vec<f64>>())
    };
    // `+F4:number:bits:signs:checks`, `+F5:number:bits:exchanges:seconds`, each a second.
    let (ecdsa, ecdh) = (fields("+F4:")?, fields("+F5:")?);
    let (signs, checks, exchanges) = (ecdsa.get(2)?, ecdsa.get(3)?, ecdh.get(2)?);
    Some(1.0 / (SIGNS / signs + CHECKS / checks + EXCHANGES / exchanges))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_openssl_says_is_read() {
        let told = "+DTP:256:sign\n+F4:3:256:50000.0:15000.0\n+F5:22:253:25000.0:0.000027\n";
        // 20 + 200 + 80 microseconds.
        assert!((of(told).unwrap() - 3333.3).abs() < 1.0);
        assert_eq!(of("nothing"), None);
    }
}
