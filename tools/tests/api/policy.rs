//! Policy over the API, and by `dpctl`.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
    sync::Mutex,
};

use datapath_tools::api::{
    AppliedDocument, ApplyReport, ApplyRequest, Change, DeleteReport, DeleteRequest, DocumentId,
    EndpointView, ExplainRequest, Explained, Failure, Kind, PolicyDetail, PolicyEntry, PolicyList,
    PolicySource, PolicyState,
};
use datapath_user::policy::{
    Document, ExplainEnd, ExplainQuery, PolicyEngine, PolicySettings, document::Reader,
};

use super::{DPCTL, Server, endpoint};

/// The documents of a node that is nothing but memory.
#[derive(Debug, Default)]
pub(crate) struct Documents(Mutex<BTreeMap<DocumentId, (Document, String)>>);

impl Documents {
    pub(crate) fn list(&self) -> PolicyList {
        let documents = self.0.lock().unwrap();
        PolicyList {
            documents: documents
                .values()
                .map(|(document, _)| entry(document))
                .collect(),
        }
    }

    pub(crate) fn get(&self, id: &DocumentId) -> Result<PolicyDetail, Failure> {
        let documents = self.0.lock().unwrap();
        let missing = || Failure::of(Kind::Missing, format!("there is no {id} here"));
        let (document, text) = documents.get(id).ok_or_else(missing)?;
        Ok(PolicyDetail {
            entry: entry(document),
            pods: Vec::new(),
            text: Some(text.clone()),
        })
    }

    pub(crate) fn apply(&self, request: &ApplyRequest) -> ApplyReport {
        let mut report = ApplyReport::default();
        let mut read = Vec::new();
        for text in &request.texts {
            let mut reader = Reader::default();
            reader.text(&text.text, text.file.as_deref());
            let reading = reader.finish();
            let texts = reading.documents.into_iter();
            read.extend(texts.map(|document| (document, text.text.clone())));
            report.refused.extend(reading.refused);
        }
        if !report.refused.is_empty() && !request.partial {
            return report;
        }
        let mut documents = self.0.lock().unwrap();
        for (document, text) in read {
            let id = document.id.clone();
            let change = match documents.insert(id.clone(), (document, text)) {
                Some(_) => Change::Changed,
                None => Change::Created,
            };
            report.applied.push(AppliedDocument { id, change });
        }
        report
    }

    pub(crate) fn delete(&self, request: &DeleteRequest) -> Result<DeleteReport, Failure> {
        let mut documents = self.0.lock().unwrap();
        for id in &request.documents {
            if documents.remove(id).is_none() {
                return Err(Failure::of(Kind::Missing, format!("there is no {id} here")));
            }
        }
        Ok(DeleteReport {
            deleted: request.documents.clone(),
            took_us: 0,
        })
    }

    pub(crate) fn explain(
        &self,
        endpoints: &[EndpointView],
        request: &ExplainRequest,
    ) -> Result<Explained, Failure> {
        let mut engine = PolicyEngine::new(PolicySettings::default());
        for (document, _) in self.0.lock().unwrap().values() {
            let _all = engine.upsert(document.clone());
        }
        let end = |id: &String| {
            let found = endpoints.iter().find(|view| view.id == *id);
            let missing = || Failure::of(Kind::Missing, format!("no endpoint {id:?}"));
            Ok::<_, Failure>(ExplainEnd::Labels(
                found.ok_or_else(missing)?.identity_labels(),
            ))
        };
        let explanation = engine.explain(&ExplainQuery {
            from: end(&request.from)?,
            to: end(&request.to)?,
            protocol: request.protocol,
            port: request.port,
        });
        Ok(Explained {
            explanation,
            audited: false,
        })
    }
}

fn entry(document: &Document) -> PolicyEntry {
    PolicyEntry {
        id: Some(document.id.clone()),
        rules: document
            .specs
            .iter()
            .map(|spec| spec.ingress.rules.len())
            .sum(),
        endpoints: 0,
        node: false,
        state: PolicyState::Enforced,
        source: PolicySource::Applied,
        file: document.file.clone(),
        problems: Vec::new(),
    }
}

/// `web` takes TCP 80 of `front` and of nobody else.
const WEB: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
    - from: [{podSelector: {matchLabels: {app: front}}}]
      ports: [{port: 80}]
";

/// What `dpctl` says to a server: exit code, output, complaint.
fn dpctl(server: &Server, arguments: &[&str], input: &str) -> (i32, String, String) {
    let mut child = Command::new(DPCTL)
        .arg("--socket")
        .arg(server.socket())
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    (
        output.status.code().unwrap(),
        String::from_utf8(output.stdout).unwrap(),
        String::from_utf8(output.stderr).unwrap(),
    )
}

fn file(server: &Server, name: &str, text: &str) -> PathBuf {
    let path = server.directory.path().join(name);
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn documents_are_applied_listed_and_deleted() {
    let server = Server::start();
    let path = file(&server, "web.yaml", WEB);
    let path = path.to_str().unwrap();
    let (code, said, _) = dpctl(&server, &["policy", "apply", path], "");
    assert_eq!((code, said.lines().count()), (0, 2), "{said}");
    assert!(said.contains("NetworkPolicy/shop/web  created"), "{said}");
    let (_, said, _) = dpctl(&server, &["policy", "apply", "-"], WEB);
    assert!(said.contains("changed"), "{said}");
    let (_, said, _) = dpctl(&server, &["policy", "list"], "");
    assert!(
        said.contains("NetworkPolicy  shop") && said.contains("standard input"),
        "{said}"
    );
    let (_, said, _) = dpctl(&server, &["policy", "get", "netpol/shop/web"], "");
    assert!(
        said.starts_with("# document") && said.ends_with(WEB),
        "{said}"
    );
    let (code, said, _) = dpctl(&server, &["policy", "delete", "-f", path], "");
    assert_eq!(
        (code, said.as_str()),
        (0, "NetworkPolicy/shop/web deleted\n")
    );
    let (_, said, _) = dpctl(&server, &["policy", "list"], "");
    assert_eq!(said, "there is no policy: nobody needs a rule\n");
}

#[test]
fn of_documents_that_cannot_be_used_none_is_applied() {
    let server = Server::start();
    let both = format!(
        "{WEB}---\n{}",
        WEB.replace("name: web", "name: db")
            .replace("  podS", "  PodS")
    );
    let path = file(&server, "both.yaml", &both);
    let path = path.to_str().unwrap();
    let (code, said, _) = dpctl(&server, &["policy", "apply", path], "");
    assert_eq!(code, 1, "{said}");
    let place = format!("{path}:16:3: ");
    assert!(
        said.contains(&place) && said.contains("`podSelector`"),
        "{said}"
    );
    assert!(said.ends_with("nothing was applied\n"), "{said}");
    assert!(server.client().policies().unwrap().documents.is_empty());
    let (code, said, _) = dpctl(&server, &["policy", "apply", "--partial", path], "");
    assert_eq!(code, 1, "{said}");
    assert!(said.ends_with("the others were applied\n"), "{said}");
    assert_eq!(server.client().policies().unwrap().documents.len(), 1);
}

#[test]
fn a_flow_is_explained_by_its_exit_code_too() {
    let server = Server::start();
    for app in ["web", "front", "other"] {
        let mut spec = endpoint(app);
        spec.namespace = Some("shop".to_owned());
        spec.labels = BTreeMap::from([("app".to_owned(), app.to_owned())]);
        server.client().add_endpoint(&spec).unwrap();
    }
    let path = file(&server, "web.yaml", WEB);
    let (code, _, said) = dpctl(&server, &["policy", "apply", path.to_str().unwrap()], "");
    assert_eq!(code, 0, "{said}");
    let explain = |from: &str, more: &[&str]| {
        let ends = ["policy", "explain", "--from", from, "--to", "web"];
        dpctl(&server, &[&ends, more].concat(), "")
    };
    let (code, said, _) = explain("front", &["--port", "80/TCP"]);
    assert_eq!(code, 0, "{said}");
    assert!(
        said.starts_with("allowed: front -> web, TCP 80\n"),
        "{said}"
    );
    assert!(
        said.contains(&format!("spec.ingress[0] ({}:8)", path.display())),
        "{said}"
    );
    let (code, said, _) = explain("front", &["--port", "81"]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("but only 80/TCP"), "{said}");
    let (code, said, _) = explain("other", &["--port", "80/TCP"]);
    assert_eq!(code, 1, "{said}");
    assert!(
        said.contains("NetworkPolicy/shop/web isolates it"),
        "{said}"
    );
    let (code, said, _) = explain("other", &["--icmp", "8"]);
    assert!(code == 1 && said.contains("ICMP type 8"), "{said}");
    for (from, more, why) in [
        ("nobody", &["--port", "80"][..], "no endpoint \"nobody\""),
        ("front", &["--port", "http"], "\"http\" is no port"),
        ("front", &[], "required arguments"),
    ] {
        let (code, said, complaint) = explain(from, more);
        assert_eq!((code, said.as_str()), (2, ""), "{complaint}");
        assert!(complaint.contains(why), "{complaint}");
    }
    let json = [
        "--output",
        "json",
        "policy",
        "explain",
        "--from",
        "front",
        "--to",
        "web",
        "--port=80",
    ];
    let (code, said, _) = dpctl(&server, &json, "");
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!((code, &said["allowed"]), (0, &true.into()));
    assert_eq!(said["ingress"]["rule"]["path"], "spec.ingress[0]");
}

#[test]
fn labels_and_audit_are_changed_by_name() {
    let server = Server::start();
    server.client().add_endpoint(&endpoint("web-0")).unwrap();
    let label = [
        "endpoint",
        "label",
        "web-0",
        "app=web",
        "tier=front",
        "--namespace",
        "shop",
    ];
    let (code, said, complaint) = dpctl(&server, &label, "");
    assert_eq!(code, 0, "{complaint}");
    assert!(said.contains("shop/-"), "{said}");
    let (_, _, _) = dpctl(&server, &["endpoint", "label", "web-0", "tier-"], "");
    let (_, said, _) = dpctl(&server, &["endpoint", "label", "web-0"], "");
    assert!(
        said.contains("k8s:app=web\n") && !said.contains("tier"),
        "{said}"
    );
    let (code, _, _) = dpctl(&server, &["policy", "audit", "on", "web-0"], "");
    let (_, said, _) = dpctl(&server, &["endpoint", "list"], "");
    assert!(code == 0 && said.contains("audited"), "{said}");
    for arguments in [
        &["policy", "audit", "on", "web-9"][..],
        &["endpoint", "label", "web-9", "a=b"],
    ] {
        let (code, _, complaint) = dpctl(&server, arguments, "");
        assert!(code == 1 && complaint.contains("\"web-9\""), "{complaint}");
    }
    let (code, said, _) = dpctl(&server, &["identity", "get", "1001"], "");
    assert!(code == 0 && said.contains("endpoints  web-0"), "{said}");
    let (code, _, complaint) = dpctl(&server, &["identity", "get", "2"], "");
    assert!(
        code == 1 && complaint.contains("reserved:world"),
        "{complaint}"
    );
}
