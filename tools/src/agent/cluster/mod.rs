//! The other nodes, as a cluster file has them, which is followed.

mod file;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use datapath_user::{Datapath, Error as DatapathError, FollowedFile};
use ipnet::IpNet;

use self::file::overlap;
use super::{file as kept, stopped};
use crate::{
    api::{Followed, PeerSpec},
    error::{Error, Result},
    table::counted,
};

/// How often the file is looked at though nothing is heard of it, and what could not be done is tried
/// again.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// The nodes of a cluster file.
#[derive(Debug)]
pub(super) struct Cluster {
    path: PathBuf,
    file: FollowedFile,
    /// File with the names of the peers that came from it, for the agent that comes next.
    names: PathBuf,
    /// Peers that the configuration has, which the file must not have.
    configured: BTreeSet<String>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What the file said when it was last good.
    text: Option<String>,
    /// Those that are in force, as they were asked for.
    applied: BTreeMap<String, PeerSpec>,
    /// Peers of the file, also those of an earlier agent.
    owned: BTreeSet<String>,
    /// The labels of this node in it, at the start.
    own_labels: BTreeMap<String, String>,
    /// What this node is called in the file.
    here: Option<String>,
    problem: Option<String>,
}

/// Which of the nodes this one is.
#[derive(Clone, Debug, Default)]
pub(super) struct Own {
    pub(super) pod_cidrs: Vec<IpNet>,
    pub(super) addresses: Vec<IpAddr>,
}

impl Own {
    fn is(&self, spec: &PeerSpec) -> bool {
        let mut pods = spec.pod_cidrs.iter();
        let pods = pods.any(|cidr| self.pod_cidrs.iter().any(|own| overlap(*own, *cidr)));
        pods || self.addresses.contains(&spec.address)
    }

    /// This node among others; why it cannot be told if it seems to be several.
    fn find<'a>(&self, specs: &'a [PeerSpec]) -> Result<Option<&'a PeerSpec>, String> {
        let mut found = specs.iter().filter(|spec| self.is(spec));
        let here = found.next();
        match (here, found.next()) {
            (Some(one), Some(other)) => Err(format!(
                "nodes {} and {} have this node's pod prefixes or address, and it can be one of \
                 them only: give the other one its own",
                one.name, other.name
            )),
            _ => Ok(here),
        }
    }
}

impl Cluster {
    /// Begins to follow a file.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] and [`Error::State`] for the file of names.
    pub(super) fn open(
        path: &Path,
        names: PathBuf,
        configured: BTreeSet<String>,
        own: &Own,
    ) -> Result<Self> {
        let state = State {
            owned: kept::read(&names)?,
            own_labels: labels_of(path, own),
            ..State::default()
        };
        Ok(Self {
            path: path.to_owned(),
            file: FollowedFile::new(path),
            names,
            configured,
            state: Mutex::new(state),
        })
    }

    /// The labels that the file gives this node, as it was at the start.
    pub(super) fn own_labels(&self) -> BTreeMap<String, String> {
        self.state().own_labels.clone()
    }

    /// Checks a file.
    ///
    /// # Errors
    ///
    /// [`Error::Os`], [`Error::Cluster`].
    pub(super) fn check(path: &Path, configured: &BTreeSet<String>) -> Result<()> {
        let text = std::fs::read_to_string(path);
        let text = text.map_err(Error::os("read the cluster file", path.display()))?;
        file::read(path, &text, configured).map(|_specs| ())
    }

    /// Whether a peer comes from the file.
    pub(super) fn owns(&self, name: &str) -> bool {
        self.state().owned.contains(name)
    }

    /// Where the file is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What there is to say of it.
    pub(super) fn view(&self) -> Followed {
        let state = self.state();
        let pods: usize = state.applied.values().map(|spec| spec.pods.len()).sum();
        Followed {
            path: self.path.clone(),
            says: format!(
                "{}, {}, this one is {}",
                counted(state.applied.len(), "other node", "other nodes"),
                counted(pods, "address of pods", "addresses of pods"),
                state.here.as_deref().unwrap_or("not among them")
            ),
            problem: state.problem.clone(),
        }
    }

    /// Follows it until `stop` is closed.
    ///
    /// # Errors
    ///
    /// [`Error::Os`] when it cannot wait.
    pub(super) fn follow(&self, datapath: &Datapath, stop: impl AsFd) -> Result<()> {
        while !stopped(stop.as_fd()) {
            let waited = self.file.wait(stop.as_fd(), LOOK_EVERY);
            waited.map_err(Error::os("wait for changes of", self.path.display()))?;
            self.look(datapath);
        }
        Ok(())
    }

    /// Reads it, and puts in force what is new. What cannot be used is told, and what it said before
    /// stays.
    pub(super) fn look(&self, datapath: &Datapath) {
        let mut state = self.state();
        let outcome = self.update(&mut state, datapath);
        let problem = outcome.err().map(|error| {
            let error = anyhow::Error::from(error);
            format!("{error:#}")
        });
        if problem != state.problem {
            if let Some(problem) = &problem {
                tracing::error!("cluster file: {problem}; what it said before stays in force");
            } else {
                tracing::info!("the cluster file can be used again");
            }
            state.problem = problem;
        }
    }

    fn update(&self, state: &mut State, datapath: &Datapath) -> Result<()> {
        let text = self.file.read();
        let text = text.map_err(Error::os("read", self.path.display()))?;
        if state.text.as_ref() == Some(&text) && state.problem.is_none() {
            return Ok(());
        }
        let mut specs = file::read(&self.path, &text, &self.configured)?;
        let own = own_of(datapath);
        let here = own.find(&specs).map_err(|problem| Error::Cluster {
            path: self.path.clone(),
            line: 1,
            problem,
        })?;
        if here.is_some_and(|here| here.labels != state.own_labels) {
            tracing::warn!(
                "the labels of this node are others now: they count when the agent is started again"
            );
        }
        state.here = here.map(|here| here.name.clone());
        specs.retain(|spec| !own.is(spec));
        self.put(state, datapath, specs)?;
        let (nodes, path) = (state.applied.len(), self.path.display());
        tracing::info!(nodes, %path, "the nodes of the cluster file are in force");
        state.text = Some(text);
        Ok(())
    }

    /// Makes these the peers that the file has: all that can be, and the first failure of the others.
    fn put(&self, state: &mut State, datapath: &Datapath, specs: Vec<PeerSpec>) -> Result<()> {
        let names: BTreeSet<String> = specs.iter().map(|spec| spec.name.clone()).collect();
        // Before and after: whoever comes next finds all that may be there.
        let all = state.owned.union(&names).cloned().collect();
        self.keep(state, all)?;
        let mut failed = None;
        for name in state.owned.difference(&names).cloned().collect::<Vec<_>>() {
            match datapath.remove_peer(&name) {
                Ok(()) | Err(DatapathError::NotFound { .. }) => {
                    state.applied.remove(&name);
                }
                Err(error) => failed = Some(error),
            }
        }
        let changed = |spec: &PeerSpec| state.applied.get(&spec.name) != Some(spec);
        let mut left: Vec<PeerSpec> = specs.into_iter().filter(changed).collect();
        // An address may go from one to another: who cannot have it yet can when that one has not.
        loop {
            let before = left.len();
            let mut failure = None;
            left.retain(|spec| match datapath.upsert_peer(spec) {
                Ok(_) => {
                    state.applied.insert(spec.name.clone(), spec.clone());
                    false
                }
                Err(error) => {
                    failure.get_or_insert(error);
                    true
                }
            });
            if left.is_empty() || left.len() == before {
                failed = failed.or(failure);
                break;
            }
        }
        match failed {
            None => self.keep(state, names),
            Some(error) => Err(error.into()),
        }
    }

    fn keep(&self, state: &mut State, names: BTreeSet<String>) -> Result<()> {
        if state.owned != names {
            kept::write(&self.names, &names)?;
            state.owned = names;
        }
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every peer of it is noted when it is in force.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who this node is, as far as the datapath tells.
fn own_of(datapath: &Datapath) -> Own {
    let uplinks = datapath
        .status()
        .map(|status| status.uplinks)
        .unwrap_or_default();
    let addresses = uplinks.into_iter().flat_map(|uplink| uplink.addresses);
    Own {
        pod_cidrs: datapath.config().pod_cidrs.clone(),
        addresses: addresses.collect(),
    }
}

/// The labels that a file gives this node; none where it cannot be used, which is told later.
fn labels_of(path: &Path, own: &Own) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let specs = file::read(path, &text, &BTreeSet::new()).unwrap_or_default();
    let here = own.find(&specs).ok().flatten();
    here.map(|spec| spec.labels.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODES: &str = r#"
        [[nodes]]
        name = "n1"
        address = "192.0.2.11"
        pod_cidrs = ["10.244.1.0/24"]
        labels = { zone = "a" }

        [[nodes]]
        name = "n2"
        address = "192.0.2.12"
        pod_cidrs = ["10.244.2.0/24"]
    "#;

    fn own(cidr: &str, address: &str) -> Own {
        Own {
            pod_cidrs: vec![cidr.parse().unwrap()],
            addresses: vec![address.parse().unwrap()],
        }
    }

    #[test]
    fn a_node_knows_itself_by_its_pods_or_its_address() {
        let specs = file::read(Path::new("c"), NODES, &BTreeSet::new()).unwrap();
        for (own, name) in [
            (own("10.244.1.0/25", "203.0.113.1"), Some("n1")),
            (own("10.9.0.0/16", "192.0.2.12"), Some("n2")),
            (own("10.9.0.0/16", "203.0.113.1"), None),
        ] {
            let found = own.find(&specs).unwrap();
            assert_eq!(found.map(|spec| spec.name.as_str()), name);
        }
        let said = own("10.244.1.0/24", "192.0.2.12").find(&specs).unwrap_err();
        assert!(said.contains("n1 and n2"), "{said}");
    }

    #[test]
    fn a_nodes_labels_are_in_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cluster.toml");
        let own = own("10.244.1.0/24", "192.0.2.11");
        assert!(labels_of(&path, &own).is_empty());
        std::fs::write(&path, NODES).unwrap();
        assert_eq!(labels_of(&path, &own)["zone"], "a");
    }
}
