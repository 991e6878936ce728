//! Requests to the API server that read and write one object. A client is kept between them, and made anew when it may
//! be to blame: the token, the CA or the connection.

use std::time::Duration;

use http::{Method, Request, header};
use kube::Client;
use kube::client::Body;
use serde_json::Value;
use tokio::time::timeout;

use super::super::client::{self, Connector, Trouble};
use crate::metrics::SyncError;

/// No object of ours is larger; a ConfigMap holds 1 MiB.
const MAX_OBJECT: usize = 4 << 20;

/// One at a time.
pub(super) struct Session {
    connector: Connector,
    /// With the namespace that perch is in.
    client: Option<(Client, String)>,
    patience: Duration,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("connector", &self.connector).finish_non_exhaustive()
    }
}

impl Session {
    pub(super) fn new(connector: Connector, patience: Duration) -> Self {
        Self { connector, client: None, patience }
    }

    /// The object, or `None` where there is none.
    pub(super) async fn get(&mut self, group: &str, kind: &str, name: &str) -> Result<Option<Value>, Trouble> {
        match self.send(Method::GET, group, kind, Some(name), None).await {
            Ok(object) => Ok(Some(object)),
            Err(trouble) if trouble.code == Some(404) => Ok(None),
            Err(trouble) => Err(trouble),
        }
    }

    /// Changes what `patch` names, and nothing else. With `metadata.resourceVersion` in it, only if nobody else changed
    /// the object since; else [`is_conflict`].
    pub(super) async fn patch(&mut self, group: &str, kind: &str, name: &str, patch: &Value) -> Result<Value, Trouble> {
        self.send(Method::PATCH, group, kind, Some(name), Some(patch)).await
    }

    pub(super) async fn create(&mut self, group: &str, kind: &str, object: &Value) -> Result<Value, Trouble> {
        self.send(Method::POST, group, kind, None, Some(object)).await
    }

    async fn send(
        &mut self,
        method: Method,
        group: &str,
        kind: &str,
        name: Option<&str>,
        body: Option<&Value>,
    ) -> Result<Value, Trouble> {
        let patience = self.patience;
        let done = timeout(patience, self.exchange(method, group, kind, name, body)).await;
        let done =
            done.unwrap_or_else(|_| Err(Trouble::new(SyncError::Stalled, format!("no answer within {patience:?}"))));
        if let Err(trouble) = &done
            && matches!(trouble.reason, SyncError::Unauthorized | SyncError::Connect | SyncError::Stalled)
        {
            self.client = None;
        }
        done
    }

    async fn exchange(
        &mut self,
        method: Method,
        group: &str,
        kind: &str,
        name: Option<&str>,
        body: Option<&Value>,
    ) -> Result<Value, Trouble> {
        let (client, namespace) = match &self.client {
            Some(known) => known.clone(),
            None => {
                let new = self.connector.connect().await?;
                self.client.insert(new).clone()
            }
        };
        let name = name.map(|name| format!("/{name}")).unwrap_or_default();
        let form = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        let request = Request::builder()
            .method(method)
            .uri(format!("{group}/namespaces/{namespace}/{kind}{name}"))
            .header(header::ACCEPT, "application/json")
            .header(header::CONTENT_TYPE, form)
            .body(body.map_or_else(Body::empty, |b| Body::from(b.to_string().into_bytes())))
            .map_err(|e| Trouble::new(SyncError::Refused, e))?;
        let response = client::answered(&client, request).await?;
        let bytes = client::read(response.into_body(), MAX_OBJECT).await?;
        serde_json::from_slice(&bytes)
            .map_err(|e| Trouble::new(SyncError::Garbage, format!("not what the API says: {e}")))
    }
}

/// Somebody else was faster.
pub(super) fn is_conflict(trouble: &Trouble) -> bool {
    trouble.code == Some(409)
}
