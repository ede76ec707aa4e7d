//! Hashes of passwords that were made to take long: bcrypt, as `htpasswd -B` makes it, and argon2.

use argon2::password_hash::phc::PasswordHash;
use argon2::{Argon2, PasswordVerifier};

/// More work than this is not done for a password: bcrypt's cost, argon2's memory in KiB, and its passes.
const MOST: (u32, u32, u32) = (14, 256 << 10, 10);

/// A hash that is understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hash {
    /// `$2y$...`
    Bcrypt(String),
    /// `$argon2id$...`
    Argon2(String),
}

impl Hash {
    /// What this text is; or why it is not taken.
    pub fn parse(text: &str) -> Result<Hash, String> {
        if text.starts_with("$2") {
            return bcrypt(text);
        }
        if text.starts_with("$argon2") {
            return argon2(text);
        }
        let kind = match text {
            _ if text.starts_with("$apr1$") => "MD5",
            _ if text.starts_with("{SHA}") => "SHA-1",
            _ => "something else",
        };
        Err(format!("the password is hashed with {kind}; take bcrypt (`htpasswd -B`) or argon2"))
    }

    /// Is it the hash of this password? Takes long, on purpose: not for a thread that others wait for.
    pub fn verify(&self, password: &str) -> bool {
        match self {
            Hash::Bcrypt(text) => bcrypt::verify(password, text).unwrap_or(false),
            Hash::Argon2(text) => PasswordHash::new(text)
                .is_ok_and(|hash| Argon2::default().verify_password(password.as_bytes(), &hash).is_ok()),
        }
    }

    /// The text that it was read from.
    pub fn text(&self) -> &str {
        match self {
            Hash::Bcrypt(text) | Hash::Argon2(text) => text,
        }
    }
}

fn bcrypt(text: &str) -> Result<Hash, String> {
    let parts: bcrypt::HashParts = text
        .parse()
        .map_err(|_| "the bcrypt hash cannot be read: make it anew with `htpasswd -B`".to_owned())?;
    if parts.get_cost() > MOST.0 {
        return Err(format!(
            "a bcrypt cost above {} takes too long: make it anew with `htpasswd -B -C 12`",
            MOST.0
        ));
    }
    Ok(Hash::Bcrypt(text.to_owned()))
}

fn argon2(text: &str) -> Result<Hash, String> {
    let hash = PasswordHash::new(text).map_err(|_| "the argon2 hash cannot be read".to_owned())?;
    let params = argon2::Params::try_from(&hash).map_err(|error| format!("the argon2 hash: {error}"))?;
    if params.m_cost() > MOST.1 || params.t_cost() > MOST.2 {
        return Err(format!("argon2 with more than {} KiB or {} passes takes too much", MOST.1, MOST.2));
    }
    if hash.hash.is_none() || hash.salt.is_none() {
        return Err("the argon2 hash lacks its salt or its end".to_owned());
    }
    Ok(Hash::Argon2(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `htpasswd -nbB -C 4 x secret` and argon2's own tool make them.
    const BCRYPT: &str = "$2y$04$5ByWHUxs8TWRcTw.VeQKzuMsW1vaKzVRCoaRbCaOYBcBeSAaZkPsa";

    #[test]
    fn both_kinds_are_known() {
        let made = bcrypt::hash_with_result("secret", 4).unwrap().format_for_version(bcrypt::Version::TwoY);
        let bcrypt = Hash::parse(&made).unwrap();
        assert!(bcrypt.verify("secret") && !bcrypt.verify("Secret") && !bcrypt.verify(""));
        let made = argon2_of("secret", 64, 1);
        let argon2 = Hash::parse(&made).unwrap();
        assert!(argon2.verify("secret") && !argon2.verify("Secret") && !argon2.verify(""));
    }

    #[test]
    fn what_is_weak_or_endless_is_refused_with_the_reason() {
        let cost = BCRYPT.replace("$04$", "$31$");
        for (text, wanted) in [
            ("$apr1$x$y", "hashed with MD5"),
            ("{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "hashed with SHA-1"),
            ("secret", "something else"),
            ("$2y$04$short", "cannot be read"),
            (cost.as_str(), "takes too long"),
            ("$argon2id$v=19$m=4194304,t=1,p=1$c2FsdHNhbHQ$aGFzaGhhc2hoYXNo", "takes too much"),
            ("$argon2id$nothing", "argon2"),
        ] {
            let error = Hash::parse(text).unwrap_err();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }

    fn argon2_of(password: &str, memory: u32, passes: u32) -> String {
        let params = argon2::Params::new(memory, passes, 1, None).unwrap();
        let argon2 = Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
        argon2::PasswordHasher::hash_password(&argon2, password.as_bytes()).unwrap().to_string()
    }
}
