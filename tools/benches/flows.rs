//! How long a million flows take from the kernel's tables to a file: through the agent's socket, as
//! `dpctl flows` asks for them.
//!
//! ```text
//! cargo bench -p datapath-tools --bench flows                     1M flows, 5 rounds
//! cargo bench -p datapath-tools --bench flows -- 100000 3         of another size
//! cargo bench -p datapath-tools --bench flows -- --gate           fails if a listing takes 3 s
//! ```
//!
//! Wall-clock times are of an idle machine only; the seconds of CPU, those of the agent's sweeps among
//! them, are nearly the same on a busy one.
//!
//! It makes a network namespace with an agent and a pod, and enters both halves of each flow into the
//! pinned tables by hand: masqueraded TCP connections of the pod, all different. Beside the times it
//! shows how long another request had to wait meanwhile, and how much memory both sides took at most.
//! Needs root.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    reason = "what fails here fails a bench"
)]

use std::{
    env,
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    net::{IpAddr, Ipv4Addr},
    path::Path,
    process::{self, Child, Command, ExitCode, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use aya::maps::{HashMap, Map, MapData};
use datapath_conformance::netns::Namespace;
use datapath_kern::abi::flow::{End, Flow, FlowKey, flags, state, verdict};
use datapath_tools::{
    api::Client,
    table::{self, numbers, words},
};
use nix::{
    sys::{
        resource::{UsageWho, getrusage},
        signal::{Signal, kill},
    },
    time::{ClockId, clock_gettime},
    unistd::Pid,
};

const DPCTL: &str = env!("CARGO_BIN_EXE_dpctl");
const AGENT: &str = env!("CARGO_BIN_EXE_dp-agent");

/// A listing of a million flows is to take less.
const GATE: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let gate = arguments.iter().any(|word| word == "--gate");
    // cargo adds one of its own.
    let mut sizes = arguments.iter().filter(|word| !word.starts_with("--"));
    let mut number = |default: u32| sizes.next().map_or(default, |word| word.parse().unwrap());
    let (flows, rounds) = (number(1_000_000), number(5));

    let rig = Rig::new(flows);
    let filled = Instant::now();
    rig.fill(flows);
    println!("{flows} flows entered in {:.1?}", filled.elapsed());
    let counted = rig.dpctl(&["flows", "--count"], None);
    assert_eq!(counted.trim(), flows.to_string(), "all of them are there");

    let file = rig.directory.path().join("flows");
    let cases: [(&str, &[&str], Option<u32>); 6] = [
        ("as JSON", &["--output", "json", "flows"], Some(flows)),
        ("as a table", &["flows"], Some(flows + 1)),
        ("as a wide table", &["flows", "--wide"], Some(flows + 1)),
        ("counted", &["flows", "--count"], Some(1)),
        (
            "the 20 largest",
            &["flows", "--sort", "bytes", "--limit", "20"],
            Some(21),
        ),
        (
            "those to one address",
            &["flows", "--to", "198.18.0.1"],
            None,
        ),
    ];
    let mut rows = Vec::new();
    let mut slow = false;
    for (name, arguments, lines) in cases {
        let mut times = Vec::new();
        let (mut waited, mut memory_kib) = (Duration::ZERO, 0);
        let before = [rig.agent_cpu_s(), children_cpu_s()];
        for _ in 0..rounds {
            rig.reset_peak();
            let probe = Probe::start(rig.client());
            let start = Instant::now();
            rig.dpctl(arguments, Some(&file));
            times.push(start.elapsed());
            waited = waited.max(probe.stop());
            memory_kib = memory_kib.max(rig.peak_kib());
            if let Some(wanted) = lines {
                let found = BufReader::new(File::open(&file).unwrap()).lines().count();
                assert_eq!(u32::try_from(found).unwrap(), wanted, "{name}");
            }
        }
        let cpu_s = [rig.agent_cpu_s() - before[0], children_cpu_s() - before[1]];
        times.sort_unstable();
        let median = times[times.len() / 2];
        slow |= lines.is_some_and(|lines| lines >= flows) && median >= GATE;
        let size = fs::metadata(&file).unwrap().len();
        rows.push(vec![
            name.to_owned(),
            seconds(times[0]),
            seconds(median),
            seconds(times[times.len() - 1]),
            format!("{:.2}", cpu_s[0] / f64::from(rounds)),
            format!("{:.2}", cpu_s[1] / f64::from(rounds)),
            (size / 1_000_000).to_string(),
            (memory_kib / 1024).to_string(),
            format!("{:.1}", waited.as_secs_f64() * 1e3),
        ]);
    }
    let columns = [
        words("FLOWS"),
        numbers("MIN S"),
        numbers("MEDIAN S"),
        numbers("MAX S"),
        numbers("AGENT CPU S"),
        numbers("DPCTL CPU S"),
        numbers("OUTPUT MB"),
        numbers("AGENT PEAK MIB"),
        numbers("OTHERS WAITED MS"),
    ];
    print!("{}", table::render(&columns, rows, "nothing was measured"));
    let children = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    println!("dpctl took {} MiB at most", children.max_rss() / 1024);

    let start = Instant::now();
    let said = rig.dpctl(&["flows", "flush", "--all-flows"], None);
    println!("{} in {:.1?}", said.trim(), start.elapsed());
    if gate && slow {
        println!("a listing took {GATE:?} or more");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// Seconds that programs which have ended computed, and the kernel for them.
fn children_cpu_s() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let seconds = |time: nix::sys::time::TimeVal| {
        Duration::from_secs(time.tv_sec().try_into().unwrap()).as_secs_f64()
            + Duration::from_micros(time.tv_usec().try_into().unwrap()).as_secs_f64()
    };
    seconds(usage.user_time()) + seconds(usage.system_time())
}

fn seconds(time: Duration) -> String {
    format!("{:.2}", time.as_secs_f64())
}

/// An agent in a namespace of its own, with a pod.
struct Rig {
    directory: tempfile::TempDir,
    agent: Child,
    _node: Namespace,
    _pod: Namespace,
}

impl Rig {
    fn new(flows: u32) -> Self {
        let name = format!("dpfl{}", process::id());
        let node = Namespace::create(&name).unwrap();
        let pod = Namespace::create(&format!("{name}-p")).unwrap();
        for line in [
            "link add up0 type veth peer name up1",
            "address add 192.0.2.11/24 dev up0",
            "link set up0 up",
            "link set up1 up",
            "route add default via 192.0.2.1",
        ] {
            let mut command = node.command("ip");
            assert!(
                command.args(line.split(' ')).status().unwrap().success(),
                "{line}"
            );
        }
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().display();
        let entries = (2 * flows).next_power_of_two();
        let config = directory.path().join("agent.toml");
        let text = format!(
            "socket = \"{at}/agent.sock\"\nstate = \"{at}/ipam.redb\"\non_stop = \"remove\"\n\
             [datapath]\nbpffs = \"{at}/bpffs\"\nuplinks = [\"up0\"]\n\
             pod_cidrs = [\"10.244.1.0/24\"]\ngateways = [\"10.244.1.1\"]\nmax_flows = {entries}\n\
             [[endpoints]]\nid = \"web-0\"\nnetns = \"/run/netns/{name}-p\"\nidentity = 1001\n"
        );
        fs::write(&config, text).unwrap();
        let mut agent = node
            .command(AGENT)
            .args(["--log", "warn", "--config"])
            .arg(&config)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(agent.stdout.take().unwrap())
            .read_line(&mut ready)
            .unwrap();
        assert!(ready.contains("ready"), "{ready:?}");
        Self {
            directory,
            agent,
            _node: node,
            _pod: pod,
        }
    }

    fn client(&self) -> Client {
        Client::new(self.directory.path().join("agent.sock"))
    }

    /// Enters both halves of so many flows.
    fn fill(&self, flows: u32) {
        let path = self.directory.path().join("bpffs/maps/flows");
        let map = Map::from_map_data(MapData::from_pin(path).unwrap()).unwrap();
        let mut table = HashMap::<_, FlowKey, Flow>::try_from(map).unwrap();
        let slot = self.client().endpoints().unwrap()[0].slot;
        let now_s = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap().tv_sec();
        let expires_s = u32::try_from(now_s).unwrap() + 7200;
        for number in 0..flows {
            for (key, half) in halves(number, slot, expires_s) {
                table.insert(key, half, 0).unwrap();
            }
        }
    }

    /// Runs `dpctl`, with what it prints in a file or returned.
    fn dpctl(&self, arguments: &[&str], into: Option<&Path>) -> String {
        let mut command = Command::new(DPCTL);
        command
            .arg("--socket")
            .arg(self.client().socket())
            .args(arguments);
        if let Some(path) = into {
            command.stdout(File::create(path).unwrap());
        }
        let output = command.stderr(Stdio::inherit()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Has the kernel forget how much memory the agent took (proc(5), `clear_refs`).
    fn reset_peak(&self) {
        let mut file = File::create(format!("/proc/{}/clear_refs", self.agent.id())).unwrap();
        file.write_all(b"5").unwrap();
    }

    /// Seconds that the agent has computed so far, and the kernel for it (proc(5), `stat`).
    fn agent_cpu_s(&self) -> f64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.agent.id())).unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let ticks = |field: usize| {
            fields
                .split(' ')
                .nth(field)
                .unwrap()
                .parse::<f64>()
                .unwrap()
        };
        // In hundredths, whatever the kernel ticks at.
        (ticks(11) + ticks(12)) / 100.0
    }

    /// Most memory that the agent took since.
    fn peak_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.agent.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmHWM:"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.agent.id().try_into().unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        self.agent.wait().unwrap();
    }
}

/// Both halves of a connection that no other number has.
fn halves(number: u32, slot: u16, expires_s: u32) -> [(FlowKey, Flow); 2] {
    let address = |ip: Ipv4Addr| IpAddr::V4(ip).into();
    let port = u16::try_from(1024 + number % 60_000).unwrap();
    // The network for benches (RFC 2544), an address for each 60000 ports.
    let outside = Ipv4Addr::new(198, 18, 0, 1).to_bits() + number / 60_000;
    let key = FlowKey {
        source: address(Ipv4Addr::new(10, 244, 1, 2)),
        destination: address(Ipv4Addr::from_bits(outside)),
        source_port: port.into(),
        destination_port: 443.into(),
        protocol: 6,
        ..FlowKey::default()
    };
    let original = Flow {
        packets: u64::from(number % 1000) + 2,
        bytes: u64::from(number) * 60,
        expires_s,
        // Different in nearly all, as the kernel's random numbers are.
        pair: number.wrapping_mul(0x9e37_79b1) | 1,
        source_identity: 1001,
        from: End::endpoint(slot).raw(),
        to: End::WORLD.raw(),
        flags: flags::SNAT | flags::ARRIVAL_POD | flags::TARGET_UPLINK,
        state: state::REPLIED | state::ESTABLISHED,
        verdict: verdict::ALLOW,
        nat_address: address(Ipv4Addr::new(192, 0, 2, 11)),
        nat_port: port.into(),
        ..Flow::default()
    };
    let answers = Flow {
        source_identity: 2,
        from: original.to,
        to: original.from,
        flags: flags::DNAT | flags::REPLY | flags::ARRIVAL_UPLINK | flags::TARGET_POD,
        nat_address: key.source,
        nat_port: key.source_port,
        ..original
    };
    [(key, original), (original.partner_key(&key), answers)]
}

/// Asks for something small all the time, and measures how long the longest answer takes.
struct Probe {
    stop: Arc<AtomicBool>,
    thread: thread::JoinHandle<Duration>,
}

impl Probe {
    fn start(client: Client) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut longest = Duration::ZERO;
            while !stopped.load(Ordering::Relaxed) {
                let start = Instant::now();
                client.endpoints().unwrap();
                longest = longest.max(start.elapsed());
                thread::sleep(Duration::from_millis(20));
            }
            longest
        });
        Self { stop, thread }
    }

    fn stop(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
