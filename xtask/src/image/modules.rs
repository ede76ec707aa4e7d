//! Kernel modules: which a guest needs, what they depend on, and the files that modprobe reads.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// End of a signed module; before it lies a struct of 12 bytes that ends with the signature's length.
const SIGNED: &[u8] = b"~Module signature appended~\n";

/// One module.
struct Module {
    bytes: Vec<u8>,
    depends: Vec<String>,
    aliases: Vec<String>,
}

/// Some modules, with all that they depend on.
pub struct Modules {
    known: BTreeMap<String, Module>,
    order: Vec<String>,
}

impl Modules {
    /// Reads the named modules, and those that they depend on, from an unpacked kernel package's folder
    /// `lib/modules/VERSION`. Names that the kernel does not have are an error.
    pub fn read(folder: &Path, names: &[&str]) -> Result<Modules> {
        let mut paths = BTreeMap::new();
        list(folder, &mut paths)?;
        let mut modules = Modules { known: BTreeMap::new(), order: Vec::new() };
        for name in names {
            modules.add(name, &paths)?;
        }
        Ok(modules)
    }

    /// Names in an order in which insmod accepts them.
    pub fn order(&self) -> &[String] {
        &self.order
    }

    /// The file of a module.
    pub fn bytes(&self, name: &str) -> &[u8] {
        self.known.get(name).map_or(&[], |module| &module.bytes)
    }

    /// Writes the modules and what modprobe needs into `folder`.
    pub fn install(&self, folder: &Path) -> Result<()> {
        fs::create_dir_all(folder)?;
        let (mut dependencies, mut aliases) = (String::new(), String::new());
        for (name, module) in &self.known {
            fs::write(folder.join(format!("{name}.ko")), &module.bytes)?;
            let mut all = Vec::new();
            self.collect(name, &mut all);
            let all: Vec<String> = all.iter().map(|name| format!(" {name}.ko")).collect();
            dependencies += &format!("{name}.ko:{}\n", all.concat());
            for alias in &module.aliases {
                aliases += &format!("alias {alias} {name}\n");
            }
        }
        fs::write(folder.join("modules.dep"), dependencies)?;
        fs::write(folder.join("modules.alias"), aliases)?;
        Ok(())
    }

    fn add(&mut self, name: &str, paths: &BTreeMap<String, std::path::PathBuf>) -> Result<()> {
        if self.known.contains_key(name) {
            return Ok(());
        }
        let path = paths.get(name).with_context(|| format!("the kernel has no module {name}"))?;
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let module = Module {
            depends: info(&bytes, "depends=").iter().flat_map(|list| list.split(',')).map(plain).collect(),
            aliases: info(&bytes, "alias="),
            bytes: without_signature(bytes),
        };
        let depends: Vec<String> = module.depends.iter().filter(|name| !name.is_empty()).cloned().collect();
        self.known.insert(name.to_owned(), Module { depends: depends.clone(), ..module });
        for name in depends {
            self.add(&name, paths)?;
        }
        self.order.push(name.to_owned());
        Ok(())
    }

    /// Everything that a module needs, nearest first, as modules.dep wants it.
    fn collect(&self, name: &str, into: &mut Vec<String>) {
        for next in self.known.get(name).iter().flat_map(|module| &module.depends) {
            into.retain(|there| there != next);
            into.push(next.clone());
            self.collect(next, into);
        }
    }
}

fn list(folder: &Path, paths: &mut BTreeMap<String, std::path::PathBuf>) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            list(&path, paths)?;
        } else if let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".ko")) {
            paths.insert(plain(name), path);
        }
    }
    Ok(())
}

/// Modules are known by underscores, their files may have dashes.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

/// Values of a key in a module's `.modinfo`, which is strings that end with a zero byte.
fn info(bytes: &[u8], key: &str) -> Vec<String> {
    bytes
        .split(|byte| *byte == 0)
        .filter_map(|part| part.strip_prefix(key.as_bytes()))
        .filter_map(|value| String::from_utf8(value.to_vec()).ok())
        .collect()
}

/// Without its signature a module loads faster, and the kernel that we boot asks for none.
fn without_signature(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(rest) = bytes.strip_suffix(SIGNED)
        && let Some((rest, length)) = rest.split_last_chunk::<4>()
        && let Some(end) = rest.len().checked_sub(8 + u32::from_be_bytes(*length) as usize)
    {
        bytes.truncate(end);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(folder: &Path, name: &str, depends: &str) {
        let text = format!("ELF\0license=GPL\0depends={depends}\0alias=fs-{name}\0");
        fs::write(folder.join(format!("{name}.ko")), text).unwrap();
    }

    #[test]
    fn dependencies_come_first() {
        let folder = tempfile::tempdir().unwrap();
        let from = folder.path().join("kernel");
        fs::create_dir(&from).unwrap();
        module(&from, "virtio-blk", "virtio,virtio_ring");
        module(&from, "virtio_ring", "virtio");
        module(&from, "virtio", "");
        let modules = Modules::read(folder.path(), &["virtio_blk"]).unwrap();
        assert_eq!(modules.order(), ["virtio", "virtio_ring", "virtio_blk"]);
        let to = folder.path().join("to");
        modules.install(&to).unwrap();
        let dependencies = fs::read_to_string(to.join("modules.dep")).unwrap();
        assert!(dependencies.contains("virtio_blk.ko: virtio_ring.ko virtio.ko\n"), "{dependencies}");
        assert!(Modules::read(folder.path(), &["absent"]).is_err());
    }

    #[test]
    fn signatures_are_cut_off() {
        let mut signed = b"module".to_vec();
        signed.extend_from_slice(b"SIGNATURE");
        signed.extend_from_slice(&[0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 9]);
        signed.extend_from_slice(SIGNED);
        assert_eq!(without_signature(signed), b"module");
        assert_eq!(without_signature(b"plain".to_vec()), b"plain");
    }
}
