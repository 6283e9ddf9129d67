//! Numbers of one node, kept in a file.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use datapath_kern::abi::endpoint::identity::{FIRST_ALLOCATED, MAX};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};

use super::IdentityAllocator;
use crate::error::Error;
use crate::policy::labels::Labels;

/// Labels by number, as they are written.
const NUMBERS: TableDefinition<'_, u32, Vec<String>> = TableDefinition::new("identities");
/// What there is one of.
const META: TableDefinition<'_, &str, u32> = TableDefinition::new("meta");
/// In `META`: where the next search for a free number begins.
const NEXT: &str = "next";
/// In `META`: the version of the tables.
const FORMAT: &str = "format";
/// The version of these.
const FORMAT_VERSION: u32 = 1;

/// How long a number that was released keeps its labels: others may still know it by them. As long
/// as the lifetime of most flows.
const COOL_DOWN: Duration = Duration::from_mins(10);

/// Numbers of one node, in the order in which they were asked for, kept in a file: the same labels
/// have the same number after a restart, however the process ended.
///
/// A number that was released stands for its labels for ten minutes more, and is then the last to
/// be given again. After a start, all are as if just released, until somebody asks for their labels.
#[derive(Debug)]
pub struct LocalIdentities {
    path: PathBuf,
    store: Database,
    numbers: HashMap<Labels, u32>,
    held: BTreeMap<u32, Held>,
    next: u32,
    cool_down: Duration,
}

#[derive(Debug)]
struct Held {
    labels: Labels,
    /// Nobody has had it since then.
    released: Option<Instant>,
}

impl LocalIdentities {
    /// Opens the file, or makes it; only its owner may read and write it.
    ///
    /// # Errors
    ///
    /// [`Error::File`], [`Error::Identities`], also where another process has it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::with_cool_down(path, COOL_DOWN)
    }

    fn with_cool_down(path: &Path, cool_down: Duration) -> Result<Self, Error> {
        if !path.try_exists().map_err(file("look for", path))? {
            create(path)?;
        }
        let failed = failed("open", path);
        let store = Database::open(path).map_err(|source| failed(source.into()))?;
        let (held, next) = read(&store).map_err(failed)?;
        Ok(Self {
            path: path.into(),
            store,
            numbers: held
                .iter()
                .map(|(&number, held)| (held.labels.clone(), number))
                .collect(),
            held,
            next,
            cool_down,
        })
    }

    /// Numbers whose labels nobody has had for so long that they can stand for others.
    fn lapsed(&self) -> Vec<u32> {
        let old = |held: &Held| {
            held.released
                .is_some_and(|since| since.elapsed() >= self.cool_down)
        };
        let all = self.held.iter();
        all.filter(|(_, held)| old(held))
            .map(|(&number, _)| number)
            .collect()
    }

    /// Writes a new number down, and that those of some labels are forgotten.
    fn write(&self, number: u32, labels: &Labels, forget: &[u32]) -> Result<(), redb::Error> {
        let transaction = self.store.begin_write()?;
        {
            let mut table = transaction.open_table(NUMBERS)?;
            for number in forget {
                table.remove(number)?;
            }
            table.insert(number, Vec::<String>::from(labels.clone()))?;
            transaction.open_table(META)?.insert(NEXT, after(number))?;
        }
        transaction.commit()?;
        Ok(())
    }
}

impl IdentityAllocator for LocalIdentities {
    /// # Errors
    ///
    /// [`Error::Full`], [`Error::Identities`].
    fn allocate(&mut self, labels: &Labels) -> Result<u32, Error> {
        if let Some(number) = self.numbers.get(labels)
            && let Some(held) = self.held.get_mut(number)
        {
            held.released = None;
            return Ok(*number);
        }
        let lapsed = self.lapsed();
        let free = |number: &u32| !self.held.contains_key(number) || lapsed.contains(number);
        let number = (self.next..=MAX)
            .chain(FIRST_ALLOCATED..self.next)
            .find(free)
            .ok_or(Error::Full {
                what: "identity",
                max: MAX,
            })?;
        self.write(number, labels, &lapsed)
            .map_err(failed("write", &self.path))?;
        for number in lapsed {
            if let Some(old) = self.held.remove(&number) {
                self.numbers.remove(&old.labels);
            }
        }
        self.numbers.insert(labels.clone(), number);
        let held = Held {
            labels: labels.clone(),
            released: None,
        };
        self.held.insert(number, held);
        self.next = after(number);
        Ok(number)
    }

    /// The number stands for its labels for ten minutes more.
    fn release(&mut self, number: u32) {
        if let Some(held) = self.held.get_mut(&number) {
            held.released = Some(Instant::now());
        }
    }

    fn labels(&self, number: u32) -> Option<Labels> {
        self.held.get(&number).map(|held| held.labels.clone())
    }
}

/// Makes the file beside where it is to be, so that half a one is never taken for one.
fn create(path: &Path) -> Result<(), Error> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let unfinished = PathBuf::from(name);
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(file("remove", &unfinished)(error));
        }
        _ => {}
    }
    initialise(&unfinished).map_err(failed("create", path))?;
    fs::set_permissions(&unfinished, fs::Permissions::from_mode(0o600))
        .map_err(file("set the mode of", &unfinished))?;
    fs::rename(&unfinished, path).map_err(file("rename into", path))
}

fn initialise(path: &Path) -> Result<(), redb::Error> {
    let store = Database::create(path)?;
    let transaction = store.begin_write()?;
    transaction.open_table(NUMBERS)?;
    {
        let mut meta = transaction.open_table(META)?;
        meta.insert(FORMAT, FORMAT_VERSION)?;
        meta.insert(NEXT, FIRST_ALLOCATED)?;
    }
    transaction.commit()?;
    Ok(())
}

/// All numbers, as if just released, and the next one.
fn read(store: &Database) -> Result<(BTreeMap<u32, Held>, u32), redb::Error> {
    let transaction = store.begin_read()?;
    let meta = transaction.open_table(META)?;
    let format = meta.get(FORMAT)?.map(|version| version.value());
    if format != Some(FORMAT_VERSION) {
        return Err(redb::Error::Corrupted(format!(
            "its tables are of version {format:?}, not {FORMAT_VERSION}"
        )));
    }
    let next = meta.get(NEXT)?.map_or(FIRST_ALLOCATED, |next| next.value());
    let now = Instant::now();
    let mut all = BTreeMap::new();
    for row in transaction.open_table(NUMBERS)?.iter()? {
        let (number, texts) = row?;
        let labels = Labels::try_from(texts.value())
            .map_err(|error| redb::Error::Corrupted(error.to_string()))?;
        let held = Held {
            labels,
            released: Some(now),
        };
        all.insert(number.value(), held);
    }
    Ok((all, next.clamp(FIRST_ALLOCATED, MAX)))
}

fn after(number: u32) -> u32 {
    if number >= MAX {
        FIRST_ALLOCATED
    } else {
        number + 1
    }
}

fn file(doing: &'static str, path: &Path) -> impl Fn(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File {
        doing,
        path: path.clone(),
        source,
    }
}

fn failed(doing: &'static str, path: &Path) -> impl Fn(redb::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Identities {
        doing,
        path: path.clone(),
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::source;

    fn labels(app: &str) -> Labels {
        let ports = Labels::default().with(source::PORT, "dns", "53/TCP,53/UDP");
        ports.with(source::K8S, "app", app)
    }

    #[test]
    fn numbers_are_kept_across_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("identities");
        let mut all = LocalIdentities::open(&path).unwrap();
        let web = all.allocate(&labels("web")).unwrap();
        let db = all.allocate(&labels("db")).unwrap();
        assert_eq!((web, db), (FIRST_ALLOCATED, FIRST_ALLOCATED + 1));
        assert_eq!(all.allocate(&labels("web")).unwrap(), web);
        drop(all);
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        let mut all = LocalIdentities::open(&path).unwrap();
        assert_eq!(all.labels(db), Some(labels("db")));
        assert_eq!(all.allocate(&labels("new")).unwrap(), db + 1);
        assert_eq!(all.allocate(&labels("db")).unwrap(), db);
        assert_eq!(all.allocate(&labels("web")).unwrap(), web);
    }

    #[test]
    fn a_released_number_stands_for_its_labels_until_it_has_cooled_down() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("identities");
        let mut all = LocalIdentities::open(&path).unwrap();
        let web = all.allocate(&labels("web")).unwrap();
        all.release(web);
        let db = all.allocate(&labels("db")).unwrap();
        assert_ne!(db, web);
        assert_eq!(all.labels(web), Some(labels("web")));
        assert_eq!(all.allocate(&labels("web")).unwrap(), web);
        all.release(web);
        drop(all);
        let mut all = LocalIdentities::with_cool_down(&path, Duration::ZERO).unwrap();
        assert_eq!(all.allocate(&labels("db")).unwrap(), db);
        // What has cooled down is forgotten by the way; its number comes last.
        assert_eq!(all.allocate(&labels("third")).unwrap(), db + 1);
        assert_eq!(all.labels(web), None);
        all.next = MAX;
        assert_eq!(all.allocate(&labels("last")).unwrap(), MAX);
        assert_eq!(all.allocate(&labels("again")).unwrap(), web);
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named_with_a_way_out() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("identities");
        fs::write(&path, b"not a database").unwrap();
        let said = LocalIdentities::open(&path).unwrap_err().to_string();
        assert!(
            said.contains("identities") && said.contains("remove the file"),
            "{said}"
        );
        fs::remove_file(&path).unwrap();
        // What an interrupted creation left is in nobody's way.
        fs::write(directory.path().join("identities.new"), b"half").unwrap();
        let first = LocalIdentities::open(&path).unwrap();
        let second = LocalIdentities::open(&path).unwrap_err();
        assert!(second.to_string().contains("open"), "{second}");
        drop(first);
    }
}
