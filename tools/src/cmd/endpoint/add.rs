//! `dpctl endpoint add`

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use clap::Args;

use super::{
    Context, Outcome,
    pod::{Pod, pair},
    rows,
};
use crate::api::{Client, EndpointSpec};

/// Where `ip netns` keeps network namespaces by name.
const NAMED_NAMESPACES: &str = "/run/netns";

const EXAMPLES: &str = "\
Policies select pods by their labels, those of their namespace, and their service account. Pods of
equal labels and named ports are one identity; one without any is unmanaged, and can be selected by
no label.

Examples:
  ip netns add web
  dpctl endpoint add web-0 --netns web --namespace shop --name web-0 --label app=web \\
      --namespace-label team=a --port http=80/TCP
  dpctl endpoint add db --netns /proc/4711/ns/net --identity 1001 --address 10.244.1.20";

/// Connect a network namespace as a pod
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cmd) struct Add {
    /// What to call it: 1 to 63 letters, digits, `_`, `.` or `-`
    id: String,

    /// Its network namespace: a name as in `ip netns list`, or a path
    #[arg(long, value_name = "NAME|PATH")]
    netns: PathBuf,

    /// Name of the interface that it gets
    #[arg(long, value_name = "NAME", default_value = "eth0")]
    interface: String,

    /// Its address, once per family [default: one of each family is allocated]
    #[arg(long = "address", value_name = "ADDRESS")]
    addresses: Vec<IpAddr>,

    /// A label of the pod
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = pair)]
    labels: Vec<(String, String)>,

    #[command(flatten)]
    pod: Pod,
}

impl Add {
    pub(super) fn run(&self, context: &Context<'_>, client: &Client) -> anyhow::Result<Outcome> {
        let added = client.add_endpoint(&self.request())?;
        context.show(&added, |added| rows(std::slice::from_ref(added)))
    }

    fn request(&self) -> EndpointSpec {
        let mut spec = EndpointSpec {
            id: self.id.clone(),
            netns: namespace(&self.netns),
            interface: self.interface.clone(),
            addresses: self.addresses.clone(),
            labels: self.labels.iter().cloned().collect(),
            ..EndpointSpec::default()
        };
        self.pod.set(&mut spec);
        spec
    }
}

/// Takes a plain word for the name of a namespace; anything with a slash is a path.
fn namespace(given: &Path) -> PathBuf {
    match given.to_str() {
        Some(name) if !name.contains('/') => Path::new(NAMED_NAMESPACES).join(name),
        // The agent may be in another directory.
        _ => std::path::absolute(given).unwrap_or_else(|_| given.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_a_name_and_the_rest_are_paths() {
        assert_eq!(namespace(Path::new("web")), Path::new("/run/netns/web"));
        assert_eq!(
            namespace(Path::new("/proc/7/ns/net")),
            Path::new("/proc/7/ns/net")
        );
        assert!(namespace(Path::new("./web")).is_absolute());
    }
}
