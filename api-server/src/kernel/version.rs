//! How far the versions of a server and an agent are apart, and what follows from it.

use std::fmt;

/// An agent beside a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skew {
    /// Of the same minor version.
    None,
    /// One minor version behind: it works.
    Older,
    /// One minor version ahead: it works.
    Newer,
    /// Further apart, or not known: what is there goes on, and nothing new is placed.
    Unsupported,
}

/// Compares by major and minor version; patches don't count.
pub fn skew(server: &str, agent: &str) -> Skew {
    let (Some(server), Some(agent)) = (major_minor(server), major_minor(agent)) else {
        return Skew::Unsupported;
    };
    let next = |(major, minor): (u32, u32)| (major, minor.saturating_add(1));
    match () {
        () if server == agent => Skew::None,
        () if server == next(agent) => Skew::Older,
        () if next(server) == agent => Skew::Newer,
        () => Skew::Unsupported,
    }
}

fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.');
    let major = numbers.next()?.parse().ok()?;
    let minor = numbers.next()?.parse().ok()?;
    Some((major, minor))
}

impl fmt::Display for Skew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Skew::None => "none",
            Skew::Older => "older",
            Skew::Newer => "newer",
            Skew::Unsupported => "unsupported",
        })
    }
}

impl Skew {
    /// What an operator should do; empty: nothing.
    pub fn advice(self, server: &str, agent: &str) -> String {
        let both = format!("the agent is of version {agent:?}, the server of {server:?}");
        let behind = match major_minor(server) > major_minor(agent) {
            true => "the agent on this node",
            false => "the servers",
        };
        match self {
            Skew::None => String::new(),
            Skew::Older | Skew::Newer => format!("{both}: they work together; upgrade {behind} soon"),
            Skew::Unsupported => format!(
                "{both}: more than one minor version apart; what is on the node goes on, nothing new is placed there; \
                 upgrade {behind}"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_minor_version_apart_works() {
        for (server, agent, wanted) in [
            ("0.4.0", "0.4.7", Skew::None),
            ("0.4.0", "0.3.9", Skew::Older),
            ("0.4.0", "0.5.0-rc.1", Skew::Newer),
            ("0.4.0", "0.2.0", Skew::Unsupported),
            ("0.4.0", "0.6.0", Skew::Unsupported),
            ("1.0.0", "0.9.0", Skew::Unsupported),
            ("0.4.0", "", Skew::Unsupported),
            ("0.4.0", "a guess", Skew::Unsupported),
            ("0.4.0", "0.99999999999", Skew::Unsupported),
        ] {
            assert_eq!(skew(server, agent), wanted, "{agent} at {server}");
        }
    }

    #[test]
    fn the_one_that_is_behind_is_to_be_upgraded() {
        assert_eq!(Skew::None.advice("0.4.0", "0.4.1"), "");
        assert!(Skew::Older.advice("0.4.0", "0.3.0").ends_with("upgrade the agent on this node soon"));
        assert!(Skew::Newer.advice("0.4.0", "0.5.0").ends_with("upgrade the servers soon"));
        let unsupported = Skew::Unsupported.advice("0.4.0", "0.6.0");
        assert!(unsupported.contains("nothing new is placed there"), "{unsupported}");
        assert!(unsupported.ends_with("upgrade the servers"), "{unsupported}");
    }
}
