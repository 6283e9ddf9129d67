//! Policy with nothing but `dp-agent` and `dpctl`: documents in a directory, a cluster file, labels,
//! and what is said of it beside what real connections come to.

use std::{
    fs,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use datapath_conformance::netns::Namespace;
use datapath_tools::api::PolicyState;
use nix::sys::signal::Signal;

use crate::{
    restart::{kill_agent, start_again},
    rig::{Lab, Running, Said},
};

/// How long something that comes may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// How long something is waited for that must not come.
const SHORT: Duration = Duration::from_millis(700);

/// `web` takes TCP 80 of `front` and of nobody else.
pub(crate) const WEB: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
    - from: [{podSelector: {matchLabels: {app: front}}}]
      ports: [{port: 80}]
";

/// `other` may begin nothing.
const OTHER: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: other, namespace: shop}
spec:
  podSelector: {matchLabels: {app: other}}
  policyTypes: [Egress]
";

/// A node of a lab whose agent was started again with policy.
pub(crate) struct Rig {
    lab: Lab,
    agent: Option<Running>,
    /// Outlives the lab's own.
    files: tempfile::TempDir,
}

impl Rig {
    /// A lab of so many nodes; the agent of the first has this section of policy, in which `@` is a
    /// directory for files.
    pub(crate) fn new(nodes: &str, pods: &str, section: &str) -> Self {
        let (lab, _) = Lab::up(&["--nodes", nodes, "--pods", pods]);
        let files = tempfile::tempdir().unwrap();
        fs::create_dir(files.path().join("policy.d")).unwrap();
        let section = section.replace('@', files.path().to_str().unwrap());
        let mut rig = Self {
            lab,
            agent: None,
            files,
        };
        rig.configure("n1", &section);
        rig.agent = Some(start_again(&rig.lab, "n1"));
        rig
    }

    /// Ends a node's agent as if by a fault, and adds to its section of policy.
    fn configure(&self, node: &str, section: &str) {
        kill_agent(self.lab.agent(node));
        let config = self.lab.directory(node).join("agent.toml");
        let text = fs::read_to_string(&config).unwrap();
        let text = text
            .replace("\nidentities = \"local\"\n", "\n")
            .replace("\n[policy]\n", &format!("\n[policy]\n{section}\n"))
            .replace("on_stop = \"remove\"", "on_stop = \"leave\"");
        assert!(text.contains(section), "{text}");
        fs::write(&config, text).unwrap();
    }

    /// Connects a pod of a node anew, with labels instead of an identity.
    pub(crate) fn label(&self, node: &str, pod: &str, app: &str) {
        self.ask(node, &["endpoint", "remove", pod]).good();
        let netns = format!("{}-{pod}", self.lab.name());
        let label = format!("app={app}");
        let number: u8 = pod.split('p').nth(1).unwrap().parse().unwrap();
        let addresses = addresses(node, number);
        self.ask(
            node,
            &[
                "endpoint",
                "add",
                pod,
                "--netns",
                &netns,
                "--namespace",
                "shop",
                "--name",
                app,
                "--label",
                &label,
                "--address",
                &addresses[0],
                "--address",
                &addresses[1],
            ],
        )
        .good();
    }

    fn ask(&self, node: &str, arguments: &[&str]) -> Said {
        self.lab.ask(node, arguments)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.files.path().join(name);
        let new = self.files.path().join("new");
        fs::write(&new, text).unwrap();
        fs::rename(&new, &path).unwrap();
        path
    }

    /// Waits until the agent says something.
    pub(crate) fn wait(&self, what: &[&str], wanted: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = self.ask("n1", what).out;
            if said.contains(wanted) {
                return said;
            }
            assert!(Instant::now() < deadline, "no {wanted:?} in\n{said}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Checks that connections come about or not, in both families, and that explain says the same.
    fn check(&self, from: &str, to: &str, port: u16, allowed: bool) {
        let [(from_pod, _, _), (to_pod, node, number)] = [from, to].map(place);
        for address in addresses(node, number) {
            let patience = if allowed { PATIENCE } else { SHORT };
            let open = self.connects(from_pod, to_pod, &address, port, patience);
            assert_eq!(open, allowed, "{from} -> {to} ({address}) {port}");
        }
        let [from, to] = [from, to].map(|name| format!("shop/{name}"));
        let port = format!("{port}/TCP");
        let explain = [
            "policy", "explain", "--from", &from, "--to", &to, "--port", &port,
        ];
        let said = self.ask("n1", &explain);
        assert_eq!(
            said.code,
            Some(i32::from(!allowed)),
            "{}{}",
            said.out,
            said.err
        );
    }

    /// The network namespace of a pod of this name.
    pub(crate) fn namespace(&self, name: &str) -> Namespace {
        let (pod, ..) = place(name);
        Namespace::open(&format!("{}-{pod}", self.lab.name())).unwrap()
    }

    fn connects(&self, from: &str, to: &str, address: &str, port: u16, patience: Duration) -> bool {
        let open = |pod: &str| Namespace::open(&format!("{}-{pod}", self.lab.name())).unwrap();
        let at = SocketAddr::new(address.parse::<IpAddr>().unwrap(), port);
        let server = open(to).run(|| TcpListener::bind(at).unwrap()).unwrap();
        let connected = open(from)
            .run(|| TcpStream::connect_timeout(&at, patience))
            .unwrap();
        drop(server);
        connected.is_ok()
    }

    pub(crate) fn end(mut self) {
        let mut agent = self.agent.take().unwrap();
        assert_eq!(agent.end(Signal::SIGTERM), Some(0));
    }
}

/// Where the pods of this name are: the endpoint, its node, its number.
pub(crate) fn place(name: &str) -> (&'static str, &'static str, u8) {
    match name {
        "web" => ("n1p1", "n1", 1),
        "front" => ("n1p2", "n1", 2),
        "other" => ("n1p3", "n1", 3),
        "far-front" => ("n2p1", "n2", 1),
        "far-other" => ("n2p2", "n2", 2),
        _ => panic!("no pod {name}"),
    }
}

/// The addresses of a pod, by its node and number.
pub(crate) fn addresses(node: &str, number: u8) -> [String; 2] {
    let node = &node[1..];
    let host = number + 1;
    [
        format!("10.244.{node}.{host}"),
        format!("fd00:10:244:{node}::{host}"),
    ]
}

/// The documents and what becomes of them, by name.
fn states(rig: &Rig) -> Vec<(String, PolicyState)> {
    let documents = rig.lab.client("n1").policies().unwrap().documents;
    let mut states: Vec<_> = documents
        .into_iter()
        .map(|document| (document.id.unwrap().name, document.state))
        .collect();
    states.sort_unstable_by(|one, other| one.0.cmp(&other.0));
    states
}

/// The states of `other`, which was applied, and `web`, of a file.
fn both(web: PolicyState) -> Vec<(String, PolicyState)> {
    vec![
        ("other".to_owned(), PolicyState::Enforced),
        ("web".to_owned(), web),
    ]
}

#[test]
fn documents_of_a_directory_are_in_force_as_they_are_written() {
    let mut rig = Rig::new("1", "3", "directory = \"@/policy.d\"");
    for (pod, app) in [("n1p1", "web"), ("n1p2", "front"), ("n1p3", "other")] {
        rig.label("n1", pod, app);
    }
    rig.check("other", "web", 80, true);

    // A file comes, is changed, and is broken: the last good one stays.
    let web = rig.write("policy.d/web.yaml", WEB);
    rig.wait(&["policy", "list"], "enforced");
    rig.check("front", "web", 80, true);
    rig.check("front", "web", 81, false);
    rig.check("other", "web", 80, false);
    let explain = [
        "policy",
        "explain",
        "--from=n1p2",
        "--to=10.244.1.2",
        "--port=80",
    ];
    let said = rig.ask("n1", &explain).good();
    assert!(said.contains(&format!("({}:7)", web.display())), "{said}");
    rig.write("policy.d/web.yaml", &WEB.replace("port: 80", "port: 81"));
    let port = [
        "policy",
        "explain",
        "--from=shop/front",
        "--to=shop/web",
        "--port=81",
    ];
    rig.wait(&port, "allowed: shop/front");
    rig.check("front", "web", 80, false);
    rig.check("front", "web", 81, true);
    rig.write(
        "policy.d/web.yaml",
        &WEB.replace("podSelector: {match", "PodSelector: {match"),
    );
    let said = rig.wait(&["policy", "list"], "refused");
    assert!(said.contains(&format!("{}:5:3: ", web.display())), "{said}");
    rig.check("front", "web", 81, true);
    rig.check("other", "web", 81, false);

    applied_beside_files(&rig, &web);
    other_agents(&mut rig);

    // Labels decide, and files and documents go.
    rig.ask("n1", &["endpoint", "label", "n1p3", "app=front"])
        .good();
    let explain = ["policy", "explain", "--from=n1p3", "--to=n1p1", "--port=80"];
    rig.ask("n1", &explain).good();
    assert!(rig.connects("n1p3", "n1p1", "10.244.1.2", 80, PATIENCE));
    rig.ask("n1", &["policy", "delete", "netpol/shop/other"])
        .good();
    fs::remove_file(&web).unwrap();
    rig.wait(&["policy", "list"], "there is no policy");
    rig.check("front", "web", 82, true);
    let status = rig.ask("n1", &["status"]).good();
    assert!(
        status.contains("policy.d: 0 documents, 0 refused"),
        "{status}"
    );
    rig.end();
}

/// What a file has, nobody else does; other documents are taken.
fn applied_beside_files(rig: &Rig, web: &Path) {
    let mine = rig.write("mine.yaml", WEB);
    let said = rig.ask("n1", &["policy", "apply", mine.to_str().unwrap()]);
    assert!(
        said.code == Some(1) && said.out.contains(web.to_str().unwrap()),
        "{}",
        said.out
    );
    let said = rig
        .ask("n1", &["policy", "delete", "netpol/shop/web"])
        .bad(1);
    assert!(said.contains(web.to_str().unwrap()), "{said}");
    rig.check("other", "front", 80, true);
    let mine = rig.write("mine.yaml", OTHER);
    rig.ask("n1", &["policy", "apply", mine.to_str().unwrap()])
        .good();
    rig.check("other", "front", 80, false);

    // A file of that name goes before it, and lets it count again when it goes.
    let file = rig.write("policy.d/other.yaml", &OTHER.replace("Egress", "Ingress"));
    let said = rig.wait(&["policy", "list"], "shadowed");
    assert!(said.contains(file.to_str().unwrap()), "{said}");
    rig.check("other", "front", 80, true);
    fs::remove_file(&file).unwrap();
    rig.wait(
        &["policy", "get", "netpol/shop/other"],
        "policyTypes: [Egress]",
    );
    rig.check("other", "front", 80, false);

    // Audited, it is let through though it is denied.
    let denied = ["policy", "explain", "--from=n1p3", "--to=n1p2", "--port=80"];
    rig.ask("n1", &["policy", "audit", "on", "n1p3"]).good();
    assert!(rig.connects("n1p3", "n1p2", "10.244.1.3", 80, PATIENCE));
    let said = rig.ask("n1", &denied);
    assert!(
        said.code == Some(1) && said.out.contains("let through"),
        "{}",
        said.out
    );
    rig.ask("n1", &["policy", "audit", "off", "n1p3"]).good();
    rig.check("other", "front", 80, false);
}

/// Another agent: broken as it is, the file closes whom it is for, until it is mended.
fn other_agents(rig: &mut Rig) {
    restart(rig);
    assert_eq!(states(rig), both(PolicyState::Quarantined));
    rig.check("front", "web", 81, false);
    rig.check("other", "front", 80, false);
    rig.write("policy.d/web.yaml", WEB);
    let deadline = Instant::now() + PATIENCE;
    while states(rig) != both(PolicyState::Enforced) {
        assert!(Instant::now() < deadline, "{:?}", states(rig));
        thread::sleep(Duration::from_millis(50));
    }
    rig.check("front", "web", 80, true);
    restart(rig);
    assert_eq!(states(rig), both(PolicyState::Enforced));
    rig.check("front", "web", 80, true);
    rig.check("other", "web", 80, false);
}

pub(crate) fn restart(rig: &mut Rig) {
    kill_agent(rig.lab.agent("n1"));
    rig.agent = Some(start_again(&rig.lab, "n1"));
}

/// The nodes of a lab of two, with their pods.
fn cluster(lab: &Lab) -> String {
    let peers = lab.client("n1").peers().unwrap();
    let n2 = peers.iter().find(|peer| peer.name == "n2").unwrap();
    let pod = |name: &str, number| {
        let [v4, v6] = addresses("n2", number);
        let app = name.trim_start_matches("far-");
        format!(
            "[[nodes.pods]]\naddresses = [{v4:?}, {v6:?}]\nnamespace = \"shop\"\nname = {name:?}\n\
             labels = {{ app = {app:?} }}\n\n"
        )
    };
    let nodes = n2
        .node_addresses
        .iter()
        .map(|address| format!("{:?}", address.to_string()));
    format!(
        "[[nodes]]\nname = \"n1\"\naddress = {:?}\npod_cidrs = [\"10.244.1.0/24\"]\n\n\
         [[nodes]]\nname = \"n2\"\naddress = {:?}\nnode_addresses = [{}]\n\
         pod_cidrs = [\"10.244.2.0/24\", \"fd00:10:244:2::/64\"]\n\n{}{}",
        n2.local.to_string(),
        n2.address.to_string(),
        nodes.collect::<Vec<_>>().join(", "),
        pod("far-front", 1),
        pod("far-other", 2),
    )
}

#[test]
fn nodes_of_a_cluster_file_are_peers_whose_pods_are_known_by_labels() {
    let section = "directory = \"@/policy.d\"\ncluster = \"@/cluster.toml\"";
    let rig = Rig::new("2", "2", section);
    let file = rig.files.path().join("cluster.toml");
    let said = rig.ask("n1", &["status"]).good();
    assert!(
        said.contains("NOT UNDERSTOOD") && said.contains("cluster.toml"),
        "{said}"
    );

    // The other node finds the same numbers for the same labels.
    rig.configure("n2", "identities = \"cluster\"");
    let mut far = start_again(&rig.lab, "n2");
    let text = cluster(&rig.lab);
    rig.write("cluster.toml", &text);
    rig.wait(
        &["status"],
        "1 other node, 4 addresses of pods, this one is n1",
    );
    for (node, pod, app) in [
        ("n1", "n1p1", "web"),
        ("n1", "n1p2", "front"),
        ("n2", "n2p1", "front"),
        ("n2", "n2p2", "other"),
    ] {
        rig.label(node, pod, app);
    }
    rig.write("policy.d/web.yaml", WEB);
    rig.wait(&["policy", "list"], "enforced");
    rig.check("far-front", "web", 80, true);
    rig.check("front", "web", 80, true);
    rig.check("far-other", "web", 80, false);

    // What cannot be used is told, with its line, and changes nothing.
    rig.write("cluster.toml", &text.replace("far-other", "far_other"));
    let line = 1 + text
        .lines()
        .take_while(|line| !line.contains("far-other"))
        .count()
        - 3;
    rig.wait(&["status"], &format!("{}:{line}: ", file.display()));
    rig.check("far-front", "web", 80, true);
    let said = rig.ask("n1", &["peers", "remove", "n2"]).bad(1);
    assert!(said.contains(file.to_str().unwrap()), "{said}");

    // A node that is not named any more is forgotten.
    let (alone, _) = text.split_once("[[nodes]]\nname = \"n2\"").unwrap();
    rig.write("cluster.toml", alone);
    rig.wait(&["peers"], "no other node is known");
    assert_eq!(far.end(Signal::SIGTERM), Some(0));
    rig.end();
}

#[test]
fn what_is_wrong_is_said_before_an_agent_starts() {
    let files = tempfile::tempdir().unwrap();
    let at = |name: &str| files.path().join(name);
    let check = |section: &str| {
        let text = format!(
            "[datapath]\nbpffs = \"/nonexistent\"\nuplinks = [\"eth0\"]\n\
             pod_cidrs = [\"10.244.1.0/24\"]\ngateways = [\"10.244.1.1\"]\n\n[policy]\n{section}\n"
        );
        fs::write(at("agent.toml"), text).unwrap();
        let mut command = std::process::Command::new(crate::rig::AGENT);
        let command = command.arg("--check").arg("--config").arg(at("agent.toml"));
        Said::of(command.output().unwrap()).bad(1)
    };
    let said = check("mod = \"always\"");
    assert!(
        said.contains("agent.toml") && said.contains("`mod`"),
        "{said}"
    );
    let section = |key: &str, path: &Path| format!("{key} = {:?}", path.to_str().unwrap());
    let said = check(&section("directory", &at("policy.d")));
    assert!(
        said.contains("policy.d") && said.contains("No such file"),
        "{said}"
    );
    fs::create_dir(at("policy.d")).unwrap();
    fs::write(
        at("policy.d/web.yaml"),
        WEB.replace("port: 80", "port: \"80\""),
    )
    .unwrap();
    let said = check(&section("directory", &at("policy.d")));
    assert!(said.contains("web.yaml:8:"), "{said}");
    fs::write(at("cluster.toml"), "[[nodes]]\nname = \"n2\"\n").unwrap();
    let said = check(&section("cluster", &at("cluster.toml")));
    assert!(
        said.contains("cluster.toml:1: missing field `address`"),
        "{said}"
    );
}
