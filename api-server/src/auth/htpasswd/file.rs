//! The file: `user:hash` lines, as Apache's `htpasswd -B` writes them; and a file of groups beside it, as Apache's
//! `AuthGroupFile`: `group: user user`.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use super::hash::Hash;

/// What the files say.
#[derive(Debug, Default)]
pub struct Known {
    /// By user.
    pub hashes: BTreeMap<String, Hash>,
    /// Of each user.
    pub groups: BTreeMap<String, Vec<String>>,
}

/// Inode, and time of the last change.
pub type Stamp = (u64, i64, i64);

/// By what one sees that a file is another one by now.
pub fn stamp(path: &Path) -> Result<Stamp, String> {
    let meta =
        std::fs::metadata(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    Ok((meta.ino(), meta.ctime(), meta.ctime_nsec()))
}

/// Reads both.
pub fn read(passwords: &Path, groups: Option<&Path>) -> Result<Known, String> {
    let mode = std::fs::metadata(passwords).map_or(0, |meta| meta.permissions().mode());
    if mode & 0o007 != 0 {
        return Err(format!(
            "{} can be read by everybody: `chmod 640` it (owner: the user of this server)",
            passwords.display()
        ));
    }
    let hashes = hashes(&text(passwords)?).map_err(|why| format!("{}, {why}", passwords.display()))?;
    let groups = match groups {
        Some(path) => groups_of(&text(path)?).map_err(|why| format!("{}, {why}", path.display()))?,
        None => BTreeMap::new(),
    };
    Ok(Known { hashes, groups })
}

fn text(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
}

fn lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    numbered.filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
}

fn hashes(text: &str) -> Result<BTreeMap<String, Hash>, String> {
    let mut all = BTreeMap::new();
    for (number, line) in lines(text) {
        let bad = |why: String| format!("line {number}: {why}");
        let (user, hash) = line.split_once(':').ok_or_else(|| bad("is not `user:hash`".into()))?;
        if user.is_empty() || user.chars().any(char::is_control) {
            return Err(bad("has no good name".into()));
        }
        let hash = Hash::parse(hash).map_err(bad)?;
        if all.insert(user.to_owned(), hash).is_some() {
            return Err(bad(format!("`{user}` is there twice")));
        }
    }
    Ok(all)
}

fn groups_of(text: &str) -> Result<BTreeMap<String, Vec<String>>, String> {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (number, line) in lines(text) {
        let (group, users) =
            line.split_once(':').ok_or_else(|| format!("line {number}: is not `group: user user`"))?;
        for user in users.split_whitespace() {
            all.entry(user.to_owned()).or_default().push(group.trim().to_owned());
        }
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASH: &str = "$2y$04$5ByWHUxs8TWRcTw.VeQKzuMsW1vaKzVRCoaRbCaOYBcBeSAaZkPsa";

    #[test]
    fn a_bad_line_is_named() {
        for (text, wanted) in [
            ("# staff\n\nanna", "line 3: is not `user:hash`"),
            (":x", "line 1: has no good name"),
            ("anna:plain", "line 1: the password is hashed with something else"),
            (&format!("anna:{HASH}\nanna:{HASH}"), "line 2: `anna` is there twice"),
        ] {
            let error = hashes(text).unwrap_err();
            assert!(error.contains(wanted), "{error}");
        }
        assert_eq!(hashes(&format!("#x\nanna:{HASH}\n")).unwrap().len(), 1);
    }

    #[test]
    fn groups_are_found_by_user() {
        let groups = groups_of("ops: anna bert\ndev:anna\n").unwrap();
        assert_eq!(groups["anna"], ["ops", "dev"]);
        assert_eq!(groups["bert"], ["ops"]);
        assert!(groups_of("ops anna").unwrap_err().contains("line 1"));
    }
}
