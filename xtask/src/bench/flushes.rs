//! How often server and agent wait for the disk: every fsync, fdatasync and syncfs, seen from outside the program
//! (`flushes.c`), so that no counter of the product is believed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;

use crate::run;

const SOURCE: &str = include_str!("flushes.c");

/// What is loaded into the programs, and where it writes.
#[derive(Debug)]
pub struct Flushes {
    library: PathBuf,
    file: PathBuf,
}

/// One wait for the disk.
#[derive(Debug, Clone, PartialEq)]
pub struct Flush {
    /// When it began.
    pub time: SystemTime,
    /// The file.
    pub path: String,
}

impl Flushes {
    /// Compiles it, into this folder.
    pub fn prepare(folder: &Path) -> Result<Flushes> {
        fs::create_dir_all(folder)?;
        let (source, library) = (folder.join("flushes.c"), folder.join("flushes.so"));
        fs::write(&source, SOURCE)?;
        run::output(run::words("cc -O2 -Wall -Werror -shared -fPIC -o").arg(&library).arg(&source))?;
        Ok(Flushes { library, file: folder.join("flushes") })
    }

    /// What the programs must find in their environment.
    pub fn environment(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.display().to_string();
        vec![("LD_PRELOAD".into(), text(&self.library)), ("BENCH_FLUSHES".into(), text(&self.file))]
    }

    /// What a program must find in its environment whose every flush is to take at least so many milliseconds.
    pub fn at_least(&self, ms: f64) -> Vec<(String, String)> {
        let library = self.library.display().to_string();
        vec![("LD_PRELOAD".into(), library), ("BENCH_FLUSH_MS".into(), ms.to_string())]
    }

    /// All that was seen until now.
    pub fn seen(&self) -> Result<Vec<Flush>> {
        Ok(fs::read_to_string(&self.file)?.lines().filter_map(parse).collect())
    }
}

/// `SECONDS PATH`
fn parse(line: &str) -> Option<Flush> {
    let (since, path) = line.split_once(' ')?;
    let time = UNIX_EPOCH + Duration::from_secs_f64(since.parse().ok()?);
    Some(Flush { time, path: path.to_owned() })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_slow_disk_is_slow() {
        let folder = tempfile::tempdir().unwrap();
        let flushes = Flushes::prepare(folder.path()).unwrap();
        let begun = std::time::Instant::now();
        let mut command = Command::new("/bin/dd");
        command.envs(flushes.at_least(50.0)).args(["if=/dev/zero", "bs=1", "count=1", "conv=fsync"]);
        run::output(command.arg(format!("of={}", folder.path().join("written").display()))).unwrap();
        assert!(begun.elapsed() >= Duration::from_millis(50), "{:?}", begun.elapsed());
    }

    #[test]
    fn a_program_of_ours_is_counted_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let flushes = Flushes::prepare(folder.path()).unwrap();
        let named = folder.path().join("rhyzome-dd");
        std::os::unix::fs::symlink("/bin/dd", &named).unwrap();
        let target = folder.path().join("written");
        for program in [named.as_path(), Path::new("/bin/dd")] {
            let mut command = Command::new(program);
            command.envs(flushes.environment()).args(["if=/dev/zero", "bs=1", "count=1", "conv=fsync"]);
            run::output(command.arg(format!("of={}", target.display()))).unwrap();
        }
        let seen = flushes.seen().unwrap();
        assert_eq!(seen.len(), 1, "{seen:?}");
        assert_eq!(Path::new(&seen[0].path), target);
        assert!(seen[0].time.elapsed().unwrap() < Duration::from_secs(60));
    }
}
