//! Pods that come and go.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use datapath_conformance::{
    family::Family,
    netns::Namespace,
    probe::{self, Options},
};
use datapath_tools::api::EndpointSpec;

use crate::{
    rig::Lab,
    tale::{Tale, Teller},
    traffic::of_family,
};

/// Pods by their number in the node, and the address they get; the first two share theirs.
const PODS: [(u8, u8); 3] = [(3, 77), (4, 77), (5, 78)];

/// A pod that comes and goes.
pub(crate) struct Pod {
    namespace: Namespace,
    spec: EndpointSpec,
    /// Told to whoever looks at what it gets.
    number: Arc<AtomicU64>,
    tale: Option<Tale>,
}

/// All of them.
pub(crate) struct Pods {
    all: Vec<Pod>,
    /// How many there were so far.
    count: u64,
}

impl Pods {
    pub(crate) fn new(lab: &Lab) -> Self {
        let all = PODS.map(|(number, last)| {
            let id = format!("n1p{number}");
            let namespace = Namespace::create(&format!("{}-{id}", lab.name())).unwrap();
            let addresses = [format!("10.244.1.{last}"), format!("fd00:10:244:1::{last}")];
            let spec = EndpointSpec {
                id,
                netns: namespace.path().to_owned(),
                interface: "eth0".to_owned(),
                addresses: addresses.map(|text| text.parse().unwrap()).to_vec(),
                identity: Some(1000 + u32::from(number)),
                ..EndpointSpec::default()
            };
            Pod {
                namespace,
                spec,
                number: Arc::default(),
                tale: None,
            }
        });
        Self {
            all: all.into(),
            count: 0,
        }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Pod> {
        self.all.iter()
    }

    pub(crate) fn get(&self, index: usize) -> &Pod {
        &self.all[index]
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Gives a pod that is about to come its number.
    pub(crate) fn comes(&mut self, index: usize) {
        self.count += 1;
        self.all[index].number.store(self.count, Ordering::SeqCst);
    }

    /// What is to be done when a pod is there: its flow to the outside goes on, or is begun.
    pub(crate) fn is_there(&mut self, index: usize, teller: &Teller) {
        let pod = &mut self.all[index];
        let number = pod.number.load(Ordering::SeqCst);
        let address = of_family(&pod.spec.addresses, Family::Ipv4);
        let tale = pod
            .tale
            .get_or_insert_with(|| Tale::open(&pod.namespace, address, number, teller));
        tale.go_on();
    }

    /// What is to be done when a pod has gone.
    pub(crate) fn has_gone(&mut self, index: usize) {
        self.all[index].tale = None;
    }
}

impl Pod {
    pub(crate) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    pub(crate) fn spec(&self) -> &EndpointSpec {
        &self.spec
    }

    pub(crate) fn number(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.number)
    }

    /// Whether it has its interface.
    pub(crate) fn is_wired(&self) -> bool {
        let links = self.namespace.netlink().unwrap().links().unwrap();
        links.iter().any(|link| link.name == self.spec.interface)
    }

    /// Checks that it and others reach each other, in both families.
    pub(crate) fn check(
        &self,
        others: &[(&Namespace, &[std::net::IpAddr])],
    ) -> datapath_conformance::Result<()> {
        let options = Options::default().with_timeout(std::time::Duration::from_secs(20));
        for (other, addresses) in others {
            for family in Family::ALL {
                let to = of_family(addresses, family);
                probe::icmp_echo(&self.namespace, to, 1, 64, &options)?;
                let to = of_family(&self.spec.addresses, family);
                probe::icmp_echo(other, to, 1, 64, &options)?;
            }
        }
        Ok(())
    }
}
