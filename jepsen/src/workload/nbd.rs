//! Registers over NBD, through a gateway that may die and come back.

use std::{sync::atomic::Ordering, time::Duration};

use tidewater_cli::nbd_client::{NbdClient, NbdError};

use super::{Failure, Gateway, Registers};
use crate::{content::Layout, history::RegisterValue};

/// A gateway answers within this time, or its connection is given up. Longer than the gateway's own
/// time for an operation.
const TIMEOUT: Duration = Duration::from_secs(40);
/// As in errno.h: the gateway's attachment is gone.
const ESHUTDOWN: u32 = 108;

/// A connection to an export, made when it is needed.
pub(super) struct Connection<'a> {
    gateway: &'a Gateway,
    export: &'static str,
    layout: Layout,
    client: Option<NbdClient>,
    session: u64,
}

impl<'a> Connection<'a> {
    pub(super) fn new(gateway: &'a Gateway, export: &'static str, layout: Layout) -> Self {
        Self { gateway, export, layout, client: None, session: 0 }
    }

    fn run<T>(
        &mut self,
        job: impl FnOnce(&mut NbdClient) -> Result<T, NbdError>,
    ) -> Result<T, Failure> {
        let mut client = self.client.take().ok_or_else(|| not_connected(&"no connection"))?;
        let result = job(&mut client);
        let fenced = matches!(result, Err(NbdError::Failed { errno: ESHUTDOWN }));
        if matches!(result, Ok(_) | Err(NbdError::Failed { .. })) && !fenced {
            self.client = Some(client);
        }
        // An NBD error does not say whether the operation happened.
        result.map_err(|error| Failure { maybe: true, fenced: false, text: error.to_string() })
    }
}

/// Nothing was sent.
fn not_connected(why: &dyn ToString) -> Failure {
    Failure { maybe: false, fenced: false, text: why.to_string() }
}

impl Registers for Connection<'_> {
    fn session(&mut self) -> Result<Option<u64>, Failure> {
        if self.client.is_none() {
            let running = || self.gateway.session.load(Ordering::SeqCst);
            let before = running();
            let client = NbdClient::connect(self.gateway.address, self.export, TIMEOUT);
            let client = client.map_err(|error| not_connected(&error))?;
            if running() != before {
                return Err(not_connected(&"the gateway was just restarted"));
            }
            self.session = before;
            self.client = Some(client);
        }
        Ok(Some(self.session))
    }

    fn read(&mut self, first: u64, span: u32) -> Result<Vec<RegisterValue>, Failure> {
        let layout = self.layout;
        let mut data = vec![0; layout.bytes(span)];
        self.run(|client| client.read(layout.offset(first), &mut data))?;
        Ok(layout.values(first, &data))
    }

    fn write(&mut self, first: u64, span: u32, value: RegisterValue) -> Result<(), Failure> {
        let layout = self.layout;
        self.run(|client| {
            client.write(layout.offset(first), &layout.fill(first, span, value), false)
        })
    }

    fn cas(&mut self, _: u64, _: RegisterValue, _: RegisterValue) -> Result<bool, Failure> {
        unreachable!("NBD has no compare-and-write, and its workload asks for none")
    }
}
