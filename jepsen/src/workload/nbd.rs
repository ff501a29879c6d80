//! Registers over NBD, through a gateway that may die and come back.

use std::{net::SocketAddr, time::Duration};

use tidewater_cli::nbd_client::{NbdClient, NbdError};

use super::{Failure, Registers};
use crate::{content::Layout, history::RegisterValue};

/// A gateway answers within this time, or its connection is given up. Longer than the gateway's own
/// time for an operation.
const TIMEOUT: Duration = Duration::from_secs(40);
/// As in errno.h: the gateway's attachment is gone.
const ESHUTDOWN: u32 = 108;

/// A connection to an export, made when it is needed.
pub(super) struct Connection {
    gateway: SocketAddr,
    export: &'static str,
    layout: Layout,
    client: Option<NbdClient>,
}

impl Connection {
    pub(super) fn new(gateway: SocketAddr, export: &'static str, layout: Layout) -> Self {
        Self { gateway, export, layout, client: None }
    }

    fn run<T>(
        &mut self,
        job: impl FnOnce(&mut NbdClient) -> Result<T, NbdError>,
    ) -> Result<T, Failure> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => NbdClient::connect(self.gateway, self.export, TIMEOUT).map_err(|error| {
                // Nothing was sent.
                Failure { maybe: false, fenced: false, text: error.to_string() }
            })?,
        };
        let result = job(&mut client);
        let fenced = matches!(result, Err(NbdError::Failed { errno: ESHUTDOWN }));
        if matches!(result, Ok(_) | Err(NbdError::Failed { .. })) && !fenced {
            self.client = Some(client);
        }
        // An NBD error does not say whether the operation happened.
        result.map_err(|error| Failure { maybe: true, fenced: false, text: error.to_string() })
    }
}

impl Registers for Connection {
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
