//! A kind's name in all the forms that its files need.

use anyhow::{Result, bail};

/// The forms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words {
    /// `mail-box`
    pub kind: String,
    /// `mail-boxes`
    pub plural: String,
    /// `mail_box`
    pub snake: String,
    /// `MailBox`
    pub pascal: String,
    /// Of its ids: `mabo`.
    pub prefix: String,
}

/// The longest name: it stands in paths, ids and type names.
const LONGEST: usize = 30;

impl Words {
    /// From the kind's name, singular and kebab-case.
    pub fn of(kind: &str) -> Result<Words> {
        let parts: Vec<&str> = kind.split('-').collect();
        let plain = |part: &&str| {
            part.starts_with(|c: char| c.is_ascii_lowercase())
                && part.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
        };
        if kind.len() > LONGEST || !parts.iter().all(plain) {
            bail!("`{kind}` cannot be a kind: say it in the singular, in small letters, like `mail-box`");
        }
        let capital = |part: &&str| format!("{}{}", part[..1].to_ascii_uppercase(), &part[1..]);
        let prefix = match parts.as_slice() {
            [one] => one.chars().take(6).collect(),
            more => more.iter().map(|part| &part[..part.len().min(2)]).collect(),
        };
        Ok(Words {
            kind: kind.to_owned(),
            plural: plural(kind),
            snake: kind.replace('-', "_"),
            pascal: parts.iter().map(capital).collect(),
            prefix,
        })
    }

    /// A template with the forms put in.
    pub fn fill(&self, template: &str) -> String {
        let words = self.kind.replace('-', " ");
        let vowel = words.starts_with(['a', 'e', 'i', 'o', 'u']);
        let forms = [
            ("@kind@", self.kind.as_str()),
            ("@plural@", &self.plural),
            ("@snake@", &self.snake),
            ("@Pascal@", &self.pascal),
            ("@prefix@", &self.prefix),
            ("@words@", &words),
            ("@an@", if vowel { "an" } else { "a" }),
            ("@An@", if vowel { "An" } else { "A" }),
        ];
        forms.iter().fold(template.to_owned(), |text, (mark, form)| text.replace(mark, form))
    }
}

fn plural(kind: &str) -> String {
    let hisses = ["s", "x", "z", "ch", "sh"].iter().any(|end| kind.ends_with(end));
    let vowel_y = ["ay", "ey", "oy", "uy"].iter().any(|end| kind.ends_with(end));
    match kind.strip_suffix('y') {
        _ if hisses => format!("{kind}es"),
        Some(stem) if !vowel_y => format!("{stem}ies"),
        _ => format!("{kind}s"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test may panic")]

    use super::*;

    #[test]
    fn one_name_in_all_its_forms() {
        let words = Words::of("mail-box").unwrap();
        let forms = [words.plural.as_str(), &words.snake, &words.pascal, &words.prefix];
        assert_eq!(forms, ["mail-boxes", "mail_box", "MailBox", "mabo"]);
        assert_eq!(words.fill("@An@ @words@: @an@ @Pascal@Spec"), "A mail box: a MailBoxSpec");
        assert_eq!(Words::of("address").unwrap().fill("@an@ @prefix@"), "an addres");
        for (one, many) in
            [("policy", "policies"), ("key", "keys"), ("bucket", "buckets"), ("switch", "switches")]
        {
            assert_eq!(Words::of(one).unwrap().plural, many);
        }
        for bad in
            ["", "Mail", "mail_box", "mail-", "-box", "mail--box", "4x", "a b", "../x", &"x".repeat(31)]
        {
            assert!(Words::of(bad).is_err(), "{bad}");
        }
    }
}
