//! Destinations outside that pods reach under their own addresses: what the ipcache says of them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use datapath_kern::abi::ipcache::{IpEntry, flags, kind};
use ipnet::IpNet;

use super::adopt::Prefixes;
use super::{Node, prefixes};
use crate::changes::Change;
use crate::config::Config;
use crate::error::Error;
use crate::masquerade::file::Followed;
use crate::masquerade::{Listed, ListedBy, NonMasqueradeView};
use crate::peer::PeerSpec;

/// The prefixes that pods reach under their own addresses.
#[derive(Debug, Default)]
pub(crate) struct Outside {
    /// What the process says.
    said: Vec<IpNet>,
    pub(crate) file: Option<Followed>,
    /// All of them, by prefix.
    listed: BTreeMap<IpNet, ListedBy>,
    /// Those that the ipcache goes by.
    done: BTreeMap<IpNet, ListedBy>,
    /// Entries of their own: those of listed prefixes, and of those that policies name.
    entered: Prefixes,
}

impl Outside {
    /// Those of a configuration, its file looked at.
    pub(super) fn of(config: &Config) -> Self {
        let mut file = config.non_masquerade_file.as_deref().map(Followed::new);
        if let Some(file) = &mut file {
            file.look();
        }
        let mut outside = Self {
            said: config.non_masquerade.clone(),
            file,
            ..Self::default()
        };
        outside.list();
        outside
    }

    /// Where the file cannot be understood, goes on with what an earlier process had of it.
    pub(super) fn go_on(&mut self, known: &Prefixes) {
        let Some(file) = self.file.as_mut().filter(|file| file.problem.is_some()) else {
            return;
        };
        let outside =
            |entry: &IpEntry| entry.kind == kind::WORLD && entry.flags & flags::NO_MASQUERADE != 0;
        let earlier = known.iter().filter(|(_, entry)| outside(entry));
        file.good.prefixes = earlier
            .map(|(&prefix, _)| Listed {
                prefix,
                by: ListedBy::Earlier,
            })
            .collect();
        self.list();
    }

    /// What there is to say of them.
    pub(crate) fn view(&self) -> NonMasqueradeView {
        let listed = self.listed.iter();
        NonMasqueradeView {
            prefixes: listed.map(|(&prefix, &by)| Listed { prefix, by }).collect(),
            file: self.file.as_ref().map(|file| file.path().to_owned()),
            problem: self.file.as_ref().and_then(|file| file.problem.clone()),
        }
    }

    /// Whether pods reach an address under their own.
    fn covers(&self, address: IpAddr) -> bool {
        self.listed.keys().any(|prefix| prefix.contains(&address))
    }

    /// Whether pods reach all of a prefix under their own addresses.
    fn covers_prefix(&self, prefix: IpNet) -> bool {
        let mut around =
            (0..=prefix.prefix_len()).filter_map(|bits| IpNet::new(prefix.addr(), bits).ok());
        around.any(|around| self.listed.contains_key(&around.trunc()))
    }

    /// Puts together what the process and the file say; the process comes first.
    fn list(&mut self) {
        let of_file = self.file.iter().flat_map(|file| &file.good.prefixes);
        let of_file = of_file.map(|listed| (listed.prefix, listed.by));
        let said = self
            .said
            .iter()
            .map(|prefix| (prefix.trunc(), ListedBy::Config));
        self.listed = of_file.chain(said).collect();
    }
}

impl Node {
    /// Looks at the file again.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub(super) fn follow_outside(&mut self, config: &Config) -> Result<Option<Change>, Error> {
        if let Some(file) = &mut self.outside.file {
            file.look();
        }
        // Also what could not be written the last time.
        self.list_outside(config)
    }

    /// Has pods reach these prefixes under their own addresses, and those of the file, and no
    /// others.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub(crate) fn set_outside(&mut self, config: &Config, said: &[IpNet]) -> Result<(), Error> {
        self.outside.said = said.to_vec();
        if let Some(change) = self.list_outside(config)? {
            tracing::info!(%change, "non-masquerade");
        }
        Ok(())
    }

    /// Does as the lists say that there are now.
    ///
    /// At any moment a destination is treated as it was before, or as it is after.
    fn list_outside(&mut self, config: &Config) -> Result<Option<Change>, Error> {
        let before = self.outside.done.clone();
        self.outside.list();
        let now = &self.outside.listed;
        let not_in = |prefixes: &BTreeMap<IpNet, _>, others: &BTreeMap<IpNet, _>| {
            let only = prefixes
                .keys()
                .filter(|prefix| !others.contains_key(*prefix));
            only.copied().collect::<Vec<IpNet>>()
        };
        let (added, removed) = (not_in(now, &before), not_in(&before, now));
        self.settle_outside(config)?;
        if added.is_empty() && removed.is_empty() {
            return Ok(None);
        }
        let covered = |address| before.keys().any(|prefix| prefix.contains(&address));
        let of_peers = self.peers.values();
        let nodes = of_peers.flat_map(|peer| self.prefixes_of(&peer.spec, peer.view.index));
        let changed: Vec<_> = nodes
            .filter(|(prefix, entry)| {
                let keeps = entry.flags & flags::NO_MASQUERADE != 0;
                entry.kind == kind::PEER_NODE && keeps != covered(prefix.addr())
            })
            .collect();
        for (prefix, entry) in changed {
            self.maps.set_prefix(prefix, entry)?;
        }
        self.outside.done = self.outside.listed.clone();
        Ok(Some(Change::NonMasquerade { added, removed }))
    }

    /// Enters the prefixes outside into the ipcache that are listed or that policies name, but for
    /// those that are someone's: of pods, which are not masqueraded anyway, of this node, or of a
    /// peer. Takes out those that are neither any more.
    ///
    /// # Errors
    ///
    /// [`Error::Map`].
    pub(super) fn settle_outside(&mut self, config: &Config) -> Result<(), Error> {
        let wanted = self.outside_prefixes(config);
        for (&prefix, &entry) in &wanted {
            if self.outside.entered.get(&prefix) != Some(&entry) {
                self.maps.set_prefix(prefix, entry)?;
                self.outside.entered.insert(prefix, entry);
            }
        }
        let entered = self.outside.entered.keys();
        let gone: Vec<IpNet> = entered
            .filter(|prefix| !wanted.contains_key(*prefix))
            .copied()
            .collect();
        for prefix in gone {
            match self.beneath(prefix) {
                Some(entry) => self.maps.set_prefix(prefix, entry)?,
                None => self.maps.remove_prefix(prefix)?,
            }
            self.outside.entered.remove(&prefix);
        }
        Ok(())
    }

    /// The entries of the prefixes outside that have one of their own: each with the identity of
    /// the longest prefix around it that policies name, and the flags of those that are listed.
    fn outside_prefixes(&self, config: &Config) -> Prefixes {
        let of_peers = self.peers.values();
        let of_peers = of_peers.flat_map(|peer| peer.spec.pod_cidrs.iter());
        let of_pods: Vec<&IpNet> = config.pod_cidrs.iter().chain(of_peers).collect();
        let someones = |prefix: &IpNet| {
            let whole = prefix.prefix_len() == prefix.max_prefix_len();
            of_pods.iter().any(|pods| pods.contains(prefix))
                || (whole && self.beneath(*prefix).is_some())
        };
        let entry = |prefix: IpNet| {
            let keeps = self.outside.covers_prefix(prefix);
            let flags = if keeps { flags::NO_MASQUERADE } else { 0 };
            let identity = self.policy.prefixes.identity(prefix);
            let entry = IpEntry {
                identity,
                flags,
                ..prefixes::world(prefix)
            };
            (prefix, entry)
        };
        let listed = self.outside.listed.keys().copied();
        let named = self.policy.prefixes.iter().map(|(prefix, _)| prefix);
        let free = listed.chain(named).filter(|prefix| !someones(prefix));
        free.map(entry).collect()
    }

    /// All entries of listed prefixes, for a table that is made to have these and no others.
    pub(super) fn enter_outside(&mut self, config: &Config) -> Prefixes {
        let wanted = self.outside_prefixes(config);
        self.outside.entered.clone_from(&wanted);
        self.outside.done = self.outside.listed.clone();
        wanted
    }

    /// What the ipcache says of a prefix that is not listed, and is no pod's of this node.
    pub(super) fn beneath(&self, prefix: IpNet) -> Option<IpEntry> {
        let address = prefix.addr();
        if prefix == IpNet::from(address) && self.watch.hosts.contains(&address) {
            return Some(prefixes::HOST);
        }
        if prefix.prefix_len() == 0 {
            return Some(prefixes::world(prefix));
        }
        let mut peers = self.peers.values();
        peers.find_map(|peer| {
            let theirs = peer.spec.names(prefix);
            let all = theirs.then(|| self.prefixes_of(&peer.spec, peer.view.index));
            let mut all = all.into_iter().flatten();
            all.find_map(|(theirs, entry)| (theirs == prefix).then_some(entry))
        })
    }

    /// What the ipcache says of a peer. Where pods reach it under their own addresses, they do so
    /// through the tunnel, if there is one.
    pub(super) fn prefixes_of(&self, spec: &PeerSpec, index: u16) -> Vec<(IpNet, IpEntry)> {
        let mut all = spec.prefixes(index);
        for (prefix, entry) in &mut all {
            if entry.kind == kind::PEER_NODE && self.outside.covers(prefix.addr()) {
                entry.flags |= flags::NO_MASQUERADE;
            }
        }
        all
    }
}
