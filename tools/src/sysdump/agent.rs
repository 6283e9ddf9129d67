//! What the agent says, what it was started with, and what it wrote.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::{Source, archive::Archive};
use crate::{agent::Config, api::Client, table};

/// Longest line of a log that counts, on average, bytes.
const LINE_BYTES: u64 = 512;

/// What is known of an agent when it was asked.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Its process, if it runs.
    pub(super) pid: Option<u32>,
    pub(super) bpffs: Option<PathBuf>,
    pub(super) uplinks: Vec<String>,
}

pub(super) fn collect(
    archive: &mut Archive,
    client: &Client,
    source: &Source,
) -> anyhow::Result<Known> {
    let mut known = Known::default();
    match client.status() {
        Ok(status) => {
            known.pid = Some(status.agent.pid);
            known.bpffs = Some(status.datapath.bpffs.clone());
            let uplinks = status.datapath.uplinks.iter();
            known.uplinks = uplinks.map(|uplink| uplink.name.clone()).collect();
            archive.json("agent/status.json", Ok(status))?;
            archive.json(
                "agent/endpoints.json",
                client.endpoints().map_err(Into::into),
            )?;
            archive.json("agent/flows.json", client.flow_halves().map_err(Into::into))?;
            archive.json("agent/peers.json", client.peers().map_err(Into::into))?;
            archive.json("agent/ipam.json", client.addresses().map_err(Into::into))?;
            let metrics = client.metrics().map_err(anyhow::Error::from);
            let drops = metrics.as_ref().map_or_else(
                |error| Err(anyhow::anyhow!("{error:#}")),
                |metrics| {
                    Ok(metrics
                        .iter()
                        .filter(|metric| metric.dropped)
                        .collect::<Vec<_>>())
                },
            );
            archive.json("agent/drops.json", drops)?;
            archive.json("agent/metrics.json", metrics)?;
            let verdicts = client.policy_counts().map_err(Into::into);
            archive.json("agent/verdicts.json", verdicts)?;
            let policies = client.policies().map_err(Into::into);
            archive.json("agent/policies.json", policies)?;
            let identities = client.identities().map_err(Into::into);
            archive.json("agent/identities.json", identities)?;
            archive.json("agent/maps.json", client.map_usage().map_err(Into::into))?;
        }
        // Said once: whatever else it would be asked it does not answer either.
        Err(error) => archive.failed("agent/", &error.into()),
    }
    let config = config(source, known.pid);
    if let Ok(config) = &config
        && known.pid.is_none()
    {
        known.bpffs = Some(config.datapath.bpffs.clone());
        let uplinks = config.datapath.uplinks.iter();
        known.uplinks = uplinks.map(|uplink| uplink.name.clone()).collect();
    }
    // Written anew from what was understood: nothing gets in that this version knows nothing of.
    let text = config.and_then(|config| Ok(toml::to_string(&config)?));
    archive.text("agent.toml", text)?;
    archive.text("agent.log", log(source, known.pid))?;
    Ok(known)
}

fn config(source: &Source, pid: Option<u32>) -> anyhow::Result<Config> {
    let beside = source.socket.with_file_name("agent.toml");
    let path = source
        .config
        .clone()
        .or_else(|| pid.and_then(started_with))
        .or_else(|| beside.is_file().then_some(beside))
        .context("not known where the agent's configuration is: name it with --config")?;
    Ok(Config::load(&path)?)
}

/// The file behind `--config` on a process's command line, seen from its directory.
fn started_with(pid: u32) -> Option<PathBuf> {
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = line.split('\0');
    let mut named = None;
    while let Some(word) = words.next() {
        if word == "--config" {
            named = words.next();
        } else if let Some(path) = word.strip_prefix("--config=") {
            named = Some(path);
        }
    }
    Some(Path::new(&format!("/proc/{pid}/cwd")).join(named?))
}

fn log(source: &Source, pid: Option<u32>) -> anyhow::Result<String> {
    let beside = source.socket.with_file_name("agent.log");
    let path = source
        .log
        .clone()
        .or_else(|| pid.and_then(standard_error))
        .or_else(|| beside.is_file().then_some(beside))
        .context("the agent writes to no file that is known: name it with --log")?;
    last_lines(&path, source.log_lines).with_context(|| format!("read {}", path.display()))
}

/// The file that a process's standard error goes to, if it is one.
fn standard_error(pid: u32) -> Option<PathBuf> {
    let path = PathBuf::from(format!("/proc/{pid}/fd/2"));
    fs::metadata(&path).ok()?.is_file().then_some(path)
}

fn last_lines(path: &Path, count: usize) -> std::io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let wanted = LINE_BYTES.saturating_mul(u64::try_from(count).unwrap_or(u64::MAX));
    file.seek(SeekFrom::Start(length.saturating_sub(wanted)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<_> = text.lines().collect();
    let from = lines.len().saturating_sub(count);
    let last = lines.get(from..).unwrap_or_default().iter();
    Ok(table::lines(last.map(|&line| line.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_of_a_log() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let lines: Vec<_> = (0..3000).map(|n| format!("line {n}")).collect();
        fs::write(&path, lines.join("\n")).unwrap();
        assert_eq!(last_lines(&path, 2).unwrap(), "line 2998\nline 2999\n");
        assert_eq!(last_lines(&path, 0).unwrap(), "");
        let all = last_lines(&path, 10_000).unwrap();
        assert_eq!(all.lines().count(), 3000);
    }

    #[test]
    fn a_process_is_asked_what_it_was_started_with() {
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read wait", "x", "--config", "etc/agent.toml"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        // The new process is there a moment before its command line is.
        let path = std::iter::repeat_with(|| {
            std::thread::sleep(std::time::Duration::from_millis(1));
            started_with(child.id())
        })
        .take(10_000)
        .flatten()
        .next();
        let expected = format!("/proc/{}/cwd/etc/agent.toml", child.id());
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(path, Some(expected.into()));
    }
}
