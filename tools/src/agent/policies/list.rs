//! What there is to say of the documents.

use std::collections::BTreeMap;

use datapath_user::{
    Datapath,
    policy::{DocumentId, PolicyView, Refusal},
};

use super::book::{Book, missing, text_in_file};
use crate::api::{
    Failure, PolicyDetail, PolicyEntry, PolicyList, PolicySource, PolicyState, parse_document_id,
};

/// Names before what has none: by id, then by where it is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Name {
    Of(DocumentId),
    /// In a file, at a line.
    At(String, u64),
}

pub(super) fn name_of(refusal: &Refusal) -> Name {
    if let Some(id) = &refusal.id {
        return Name::Of(id.clone());
    }
    let file = refusal.file.as_ref();
    let file = file.map(|file| file.display().to_string());
    Name::At(file.unwrap_or_default(), refusal.line)
}

/// All documents.
pub(super) fn list(book: &Book, datapath: &Datapath) -> PolicyList {
    let owned = book.owned();
    let mut all: BTreeMap<Name, PolicyEntry> = BTreeMap::new();
    let views = datapath.policies();
    let closed: Vec<&PolicyView> = views.iter().filter(|view| view.closed).collect();
    for view in views.iter().filter(|view| view.refused.is_none()) {
        let Some(id) = id_of(view) else { continue };
        let entry = PolicyEntry {
            rules: view.rules,
            endpoints: view.endpoints,
            node: view.node,
            source: if owned.contains_key(&id) || !book.applied.has(&id) {
                PolicySource::Directory
            } else {
                PolicySource::Applied
            },
            file: view.file.clone(),
            ..entry(Some(id.clone()), PolicyState::Enforced)
        };
        all.insert(Name::Of(id), entry);
    }
    let applied = book.applied.reading();
    let rests = |refusal: &&Refusal| {
        let id = refusal.id.as_ref();
        !id.is_some_and(|id| owned.contains_key(id))
    };
    let refused = applied.refused.iter().filter(rests);
    for refusal in book.reading.refused.iter().chain(refused) {
        let told = refusal.to_string();
        let is_closed = closed
            .iter()
            .any(|view| view.refused.as_ref() == Some(&told));
        let of = all.entry(name_of(refusal)).or_insert_with(|| PolicyEntry {
            file: refusal.file.clone(),
            source: if book.reading.refused.contains(refusal) {
                PolicySource::Directory
            } else {
                PolicySource::Applied
            },
            ..entry(refusal.id.clone(), PolicyState::Refused)
        });
        of.state = if is_closed {
            PolicyState::Quarantined
        } else {
            PolicyState::Refused
        };
        of.problems.push(told);
    }
    let mut documents: Vec<_> = all.into_values().collect();
    for document in applied.documents {
        if let Some(file) = owned.get(&document.id) {
            let hidden = PolicyEntry {
                file: document.file,
                problems: vec![format!(
                    "{} has a document of this name, which counts",
                    file.display()
                )],
                ..entry(Some(document.id), PolicyState::Shadowed)
            };
            let place =
                documents.partition_point(|other| other.id.is_some() && other.id <= hidden.id);
            documents.insert(place, hidden);
        }
    }
    PolicyList { documents }
}

/// One document, with its text.
///
/// # Errors
///
/// [`Kind::Missing`](crate::api::Kind::Missing).
pub(super) fn get(
    book: &Book,
    datapath: &Datapath,
    id: &DocumentId,
) -> Result<PolicyDetail, Failure> {
    let mut all = list(book, datapath).documents.into_iter();
    let entry = all.find(|entry| entry.id.as_ref() == Some(id));
    let entry = entry.ok_or_else(|| missing(id, ""))?;
    let text = match entry.source {
        PolicySource::Applied => book.applied.text_of(id).map(ToOwned::to_owned),
        PolicySource::Directory => text_in_file(id, &book.reading),
    };
    Ok(PolicyDetail {
        pods: datapath.policy_endpoints(id),
        entry,
        text,
    })
}

/// One of which nothing is known yet.
fn entry(id: Option<DocumentId>, state: PolicyState) -> PolicyEntry {
    PolicyEntry {
        id,
        rules: 0,
        endpoints: 0,
        node: false,
        state,
        source: PolicySource::Applied,
        file: None,
        problems: Vec::new(),
    }
}

fn id_of(view: &PolicyView) -> Option<DocumentId> {
    parse_document_id(view.id.as_deref()?).ok()
}
