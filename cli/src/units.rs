//! Sizes, durations and ages, as people write and read them.

use jiff::Timestamp;

const UNITS: [(&str, u64); 6] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("PiB", 1 << 50),
    ("EiB", 1 << 60),
];

/// `512MiB`, `2G`, `1.5 GiB`, `1GB` or plain bytes, in bytes.
pub fn size(text: &str) -> Result<u64, String> {
    let refuse = || format!("`{text}` is no size: write 512MiB, 20GiB, or bytes");
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = (&text[..end], text[end..].trim().to_ascii_lowercase());
    let factor = match unit.as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        unit => {
            let known = |(name, _): &&(&str, u64)| {
                let name = name.to_ascii_lowercase();
                unit == name || unit == &name[..1] || unit == &name[..2]
            };
            UNITS.iter().find(known).map(|(_, factor)| *factor).ok_or_else(refuse)?
        }
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(|| format!("`{text}` is too large"));
    }
    let bytes = number.parse::<f64>().map_err(|_| refuse())? * factor as f64;
    if bytes.fract() != 0.0 || bytes >= u64::MAX as f64 {
        return Err(format!("`{text}` is no whole number of bytes"));
    }
    Ok(bytes as u64)
}

/// `90`, `90s`, `2m`, `1h`, in seconds.
pub fn seconds(text: &str) -> Result<u64, String> {
    let refuse = || format!("`{text}` is no duration: write 30s, 2m, 1h, or seconds");
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let factor = match text[end..].trim() {
        "" | "s" => 1,
        "m" | "min" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return Err(refuse()),
    };
    text[..end].parse::<u64>().ok().and_then(|number| number.checked_mul(factor)).ok_or_else(refuse)
}

/// Bytes with the largest unit that reads well: `512 MiB`.
pub fn human_size(bytes: u64) -> String {
    let Some((unit, factor)) = UNITS.iter().rev().find(|(_, factor)| bytes >= *factor) else {
        return format!("{bytes} B");
    };
    let number = bytes as f64 / *factor as f64;
    if number.fract() < 0.05 { format!("{number:.0} {unit}") } else { format!("{number:.1} {unit}") }
}

/// How long ago an RFC 3339 time was: `3m`.
pub fn age(time: &str, now: Timestamp) -> String {
    let Ok(time) = time.parse::<Timestamp>() else { return String::new() };
    let seconds = (now.as_second() - time.as_second()).max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7200 => format!("{}m", seconds / 60),
        7200..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("0", 0),
            ("1024", 1024),
            ("512MiB", 512 << 20),
            ("512m", 512 << 20),
            ("2 GiB", 2 << 30),
            ("1.5g", 3 << 29),
            ("1GB", 1_000_000_000),
            ("4Ki", 4096),
            ("1EiB", 1 << 60),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "x", "1x", "1.1B", "99EiB", "-1"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_and_ages() {
        assert_eq!((seconds("90"), seconds("2m"), seconds("1h")), (Ok(90), Ok(120), Ok(3600)));
        assert!(seconds("soon").is_err());
        let now = "2026-11-21T03:00:00Z".parse().unwrap();
        assert_eq!(age("2026-11-21T02:57:00.5Z", now), "3m");
        assert_eq!(age("2026-11-18T03:00:00Z", now), "3d");
    }

    #[test]
    fn sizes_are_written() {
        assert_eq!(human_size(512 << 20), "512 MiB");
        assert_eq!(human_size(3 << 29), "1.5 GiB");
        assert_eq!(human_size(100), "100 B");
    }
}
