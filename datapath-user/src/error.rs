//! What can go wrong: the operation, the object, and what to do.

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use datapath_tunnel::mtu::MtuError;
use datapath_tunnel::netlink::NetlinkError;
use ipnet::IpNet;

/// What to do where no BPF file system can be mounted.
pub(crate) const BPFFS_REMEDY: &str = "use a kernel built with CONFIG_BPF_SYSCALL, or mount one \
                                       where the agent's `bpffs` setting points";

/// Any failure of this library.
///
/// `Display` says what was being done to what; the reason is the `source`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting that cannot be used.
    #[error("setting {field} = {value}: {rule}")]
    Setting {
        /// The field of [`Config`](crate::Config).
        field: &'static str,
        /// What it says.
        value: String,
        /// What it must be.
        rule: &'static str,
    },
    /// A flow table that there is not the memory for.
    #[error(
        "setting {field} = {value}: the flow tables would take {needed_mib} MiB, and may take \
         {most_mib} MiB, half of {of}: set it to at most {fits}, or leave it out"
    )]
    TooLarge {
        /// The field of [`Config`](crate::Config).
        field: &'static str,
        /// What it says, or what follows from the others.
        value: u32,
        /// What both tables take.
        needed_mib: u64,
        /// What they may take,
        most_mib: u64,
        /// which is half of this.
        of: &'static str,
        /// The largest value that could be used.
        fits: u32,
    },
    /// A name, address or identity that cannot be used.
    #[error("{what} {value:?}: {rule}")]
    Invalid {
        /// What kind of thing.
        what: &'static str,
        /// What was given.
        value: String,
        /// What it must be.
        rule: &'static str,
    },
    /// The process may not do this.
    #[error(
        "missing capability {missing}: run as root, or give the process {missing}; `dpctl doctor` \
         tells what else is missing"
    )]
    Capability {
        /// The capabilities, comma separated.
        missing: String,
    },
    /// The kernel cannot do this.
    #[error("kernel {release}: {what}; `dpctl doctor` tells what works here")]
    Kernel {
        /// Its version.
        release: String,
        /// What it lacks, and from which version on it is there.
        what: &'static str,
    },
    /// A live process has the directory.
    #[error(
        "{} is in use by another datapath{}: stop it first",
        path.display(), process(*holder)
    )]
    InUse {
        /// The directory.
        path: PathBuf,
        /// The process, where the kernel tells.
        holder: Option<u32>,
    },
    /// Others than root could have put something into the directory, or could.
    #[error(
        "{} belongs to user {uid} with mode {mode:04o}, and must be root's alone: make it so \
         (`chown root`, `chmod 0700`), or set `bpffs` to another directory",
        path.display()
    )]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        uid: u32,
        /// Its permissions.
        mode: u32,
    },
    /// There is something in the directory that no datapath made.
    #[error(
        "{} is not a datapath's: remove it if nobody needs it, or set `bpffs` to another directory",
        path.display()
    )]
    Foreign {
        /// What was found.
        path: PathBuf,
    },
    /// The pins were made by an incompatible version.
    #[error(
        "{} holds a datapath of ABI version {found}, this is version {ours}: run the version that \
         made it, or remove it with `dpctl cleanup --bpffs {}`",
        path.display(), path.display()
    )]
    AbiVersion {
        /// The directory.
        path: PathBuf,
        /// Their version.
        found: u32,
        /// Our own.
        ours: u32,
    },
    /// A pinned map is not like the object's.
    #[error(
        "pinned map {} has {what} {found}, not {wanted}: {}",
        path.display(), remedy(path, what, *found)
    )]
    MapShape {
        /// The pin.
        path: PathBuf,
        /// What differs.
        what: &'static str,
        /// What the pinned map has.
        found: u32,
        /// What this load needs.
        wanted: u32,
    },
    /// A pin of a whole datapath is missing.
    #[error(
        "{} is missing from the pins of a datapath: remove the rest with \
         `dpctl cleanup --bpffs DIR`",
        path.display()
    )]
    Damaged {
        /// The pin.
        path: PathBuf,
    },
    /// The pins are of a datapath in another network namespace.
    #[error(
        "{} holds the datapath of another network namespace (inode {found}, this is {ours}): run \
         this in that one, as with `nsenter --net`",
        path.display()
    )]
    OtherNamespace {
        /// The directory.
        path: PathBuf,
        /// Inode of its namespace.
        found: u64,
        /// Inode of this one.
        ours: u64,
    },
    /// The network namespace has a datapath with another directory.
    #[error(
        "{interface} is in use by a datapath with another `bpffs` directory: stop its agent, or, \
         if it is dead, remove what it left with `dpctl cleanup --bpffs DIR`"
    )]
    Occupied {
        /// The interface that there is one of in a network namespace.
        interface: &'static str,
    },
    /// A setting that pods were connected under is another one now.
    #[error(
        "setting {field} is {now}, and the datapath in {} has pods connected under {was}: set it \
         back, or remove that datapath with `dpctl cleanup --bpffs {}`",
        path.display(), path.display()
    )]
    Changed {
        /// The field of [`Config`](crate::Config).
        field: &'static str,
        /// What it was.
        was: String,
        /// What it is.
        now: String,
        /// The directory of the pins.
        path: PathBuf,
    },
    /// A file operation failed.
    #[error("{doing} {}", path.display())]
    File {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A document that cannot be used.
    #[error("{}{}: {why}", path.display(), position(*place))]
    Document {
        /// Its file.
        path: PathBuf,
        /// The line and the column, both counted from 1, where it is one place.
        place: Option<(u64, u64)>,
        /// What is wrong there, and what to write instead.
        why: String,
    },
    /// There is no BPF file system for the pins, and none could be mounted.
    #[error("mount bpffs on {}: {BPFFS_REMEDY}", path.display())]
    Bpffs {
        /// The directory.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The object could not be loaded.
    #[error("load the eBPF object (`dpctl doctor` tells what works here)")]
    Load(#[source] Box<aya::EbpfError>),
    /// A program was refused by the kernel.
    #[error("load program {program}\n{log}")]
    Program {
        /// Its name.
        program: &'static str,
        /// The end of the verifier's log.
        log: String,
        /// Why.
        #[source]
        source: Box<aya::programs::ProgramError>,
    },
    /// A program could not be attached.
    #[error("attach {program} to {interface} (`dpctl doctor` tells what works here)")]
    Attach {
        /// Its name.
        program: &'static str,
        /// Where.
        interface: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A program could not be detached.
    #[error("detach what {} says", path.display())]
    Detach {
        /// The pin that tells the program and the number of the interface.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The object lacks something: it is not the one that belongs to this library.
    #[error("the eBPF object has no {what}: it was not built from this version")]
    Object {
        /// What is missing.
        what: String,
    },
    /// The file that [`Config::object`](crate::Config::object) names cannot be loaded.
    #[error(
        "{} cannot be loaded as the datapath's object: {why}: build it from this version with \
         `cargo xtask ebpf`, or leave `object` out for the built-in one",
        path.display()
    )]
    OtherObject {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A map operation failed.
    #[error("{doing} map {map}")]
    Map {
        /// What was being done.
        doing: &'static str,
        /// To which map.
        map: &'static str,
        /// Why it failed.
        #[source]
        source: Box<aya::maps::MapError>,
    },
    /// A pinned map cannot be looked at.
    #[error("look at map {}", path.display())]
    Pin {
        /// Its pin.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: Box<aya::maps::MapError>,
    },
    /// Loaded programs cannot be listed.
    #[error("list programs")]
    Programs(#[source] Box<aya::programs::ProgramError>),
    /// A change to interfaces, addresses or routes failed.
    #[error("configure {object}")]
    Network {
        /// Which interface or namespace.
        object: String,
        /// What was being done, and why it failed.
        #[source]
        source: NetlinkError,
    },
    /// The uplink is too small for pods.
    #[error("uplink {uplink}")]
    Mtu {
        /// Its name.
        uplink: String,
        /// Why.
        #[source]
        source: MtuError,
    },
    /// There is one by that name already.
    #[error("{what} {name:?} exists already: remove it first")]
    Exists {
        /// What kind of thing.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// There is none by that name.
    #[error("no {what} {name:?}")]
    NotFound {
        /// What kind of thing.
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// There is no end of flows by that name.
    #[error("no {what} {name:?}: {remedy}")]
    NoSuchEnd {
        /// What it would have to be.
        what: &'static str,
        /// The name.
        name: String,
        /// Where those are listed that there are.
        remedy: &'static str,
    },
    /// An address belongs to someone else.
    #[error("address {address} belongs to {owner} already")]
    AddressInUse {
        /// The address or prefix.
        address: IpNet,
        /// Who has it.
        owner: String,
    },
    /// Everything of a kind is in use.
    #[error("no room for another {what}: {max} is the limit")]
    Full {
        /// What kind of thing.
        what: &'static str,
        /// How many there may be.
        max: u32,
    },
    /// Two sets of labels have the same number.
    #[error(
        "identity {number} is that of the labels [{known}], and [{labels}] would have it too: give \
         one of them another number with `identity = N`, the same on every node"
    )]
    IdentityCollision {
        /// The number.
        number: u32,
        /// The labels that it was wanted for.
        labels: String,
        /// Those that have it.
        known: String,
    },
    /// The file that keeps the numbers of identities cannot be used.
    #[error(
        "{doing} the identities in {}: if the file is damaged, stop the agent, remove the file and \
         start it again; identities are numbered anew then",
        path.display()
    )]
    Identities {
        /// What was being done.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: Box<redb::Error>,
    },
    /// The compiled policy does not fit into its maps.
    #[error(
        "map {map} has no room for policy: {needed} more entries are needed, and of {max} {used} are \
         in use: have fewer documents, or fewer ports and peers in them; nothing was changed"
    )]
    PolicyFull {
        /// The map.
        map: &'static str,
        /// Entries that were to be added.
        needed: usize,
        /// Entries that are there.
        used: usize,
        /// Room for.
        max: u32,
    },
    /// A pod of another node has labels, and no number that the nodes agree on.
    #[error(
        "pod {address} of peer {peer} has labels and no identity, and this node counts its \
         identities by itself: give it one with `identity = N`, or set `policy.identities = \
         \"cluster\"` on all nodes"
    )]
    NoIdentity {
        /// The peer.
        peer: String,
        /// The pod's address.
        address: IpAddr,
    },
    /// There are rules of an earlier process, and nobody has said which documents there are.
    #[error(
        "the policy in force is an earlier process's, and its documents are not known: set all of \
         them first (`Datapath::set_policies`)"
    )]
    PoliciesUnknown,
    /// The ring buffer of events has one reader.
    #[error(
        "events are being read already, and two readers would take them from each other: drop the \
         first, or hand on what it reads"
    )]
    EventsTaken,
    /// Teardown went on to the end, and this is what it could not do.
    #[error("teardown left {} things undone:{}", .0.len(), list(.0))]
    Teardown(Vec<Self>),
}

impl Error {
    /// One error of several: the only one as it is.
    pub(crate) fn collect(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => errors.pop().map_or(Ok(()), Err),
            _ => Err(Self::Teardown(errors)),
        }
    }

    /// A failed file operation.
    pub(crate) fn file(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File {
            doing,
            path,
            source,
        }
    }

    /// A document that does not read.
    pub(crate) fn document(path: &Path, error: &serde_saphyr::Error) -> Self {
        let place = error.location().map(|at| (at.line(), at.column()));
        let mut why = error.without_snippet().to_string();
        if let Some((line, column)) = place {
            // It is said in front.
            let said = format!(" at line {line}, column {column}");
            why = why.replacen(&said, "", 1);
            let said = format!("line {line} column {column}: ");
            why = why.replacen(&said, "", 1);
        }
        Self::Document {
            path: path.to_owned(),
            place,
            why,
        }
    }

    /// A failed network change.
    pub(crate) fn network(object: impl Into<String>) -> impl FnOnce(NetlinkError) -> Self {
        let object = object.into();
        move |source| Self::Network { object, source }
    }

    /// A failed map operation.
    pub(crate) fn map(
        doing: &'static str,
        map: &'static str,
    ) -> impl FnOnce(aya::maps::MapError) -> Self {
        move |source| Self::Map {
            doing,
            map,
            source: Box::new(source),
        }
    }
}

/// Writes the place in a document behind the name of its file, as compilers do.
fn position(place: Option<(u64, u64)>) -> String {
    place.map_or_else(String::new, |(line, column)| format!(":{line}:{column}"))
}

/// Names a process, where it is known.
fn process(holder: Option<u32>) -> String {
    holder.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

/// What to do about a pinned map that does not fit.
fn remedy(pin: &Path, what: &str, found: u32) -> String {
    let name = pin.file_name().unwrap_or_default().to_string_lossy();
    let directory = pin.ancestors().nth(2).unwrap_or(pin).display();
    let setting = match name.as_ref() {
        "events" => "event_ring_bytes",
        "fragments" | "fragment_ids" => "max_fragments",
        _ => "",
    };
    if what == "max_entries" && !setting.is_empty() {
        return format!(
            "this map cannot be resized, so set {setting} = {found}, or remove the datapath \
             with `dpctl cleanup --bpffs {directory}`"
        );
    }
    format!("remove it with `dpctl cleanup --bpffs {directory}`")
}

fn list(errors: &[Error]) -> String {
    use std::error::Error as _;
    let mut text = String::new();
    for error in errors {
        text.push_str("\n  ");
        text.push_str(&error.to_string());
        let mut source = error.source();
        while let Some(reason) = source {
            text.push_str(": ");
            text.push_str(&reason.to_string());
            source = reason.source();
        }
    }
    text
}
