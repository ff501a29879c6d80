//! Registers on something that stores blocks: what workers see of the library and of NBD.

use tidewater_client::{BlockDevice, BlockError, Kind, Outcome, blocking::Disk};

use crate::{content::Layout, history::RegisterValue};

/// Why an operation on registers failed.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// It may have taken effect.
    pub(crate) maybe: bool,
    /// The attachment is gone for good.
    pub(crate) fenced: bool,
    /// For people.
    pub(crate) text: String,
}

/// Registers, as one thread uses them.
pub(crate) trait Registers {
    /// Before each operation: the attachment that it will go through, where that is of interest.
    fn session(&mut self) -> Result<Option<u64>, Failure>;
    /// The values of `span` registers.
    fn read(&mut self, first: u64, span: u32) -> Result<Vec<RegisterValue>, Failure>;
    /// Sets `span` registers to one value.
    fn write(&mut self, first: u64, span: u32, value: RegisterValue) -> Result<(), Failure>;
    /// Sets a register if it has the value `from`; says whether it did.
    fn cas(
        &mut self,
        register: u64,
        from: RegisterValue,
        to: RegisterValue,
    ) -> Result<bool, Failure>;
}

/// Registers on a block device.
pub(crate) struct Device<D> {
    disk: Disk<D>,
    layout: Layout,
    session: Option<u64>,
}

impl<D: BlockDevice> Device<D> {
    pub(crate) fn new(disk: Disk<D>, layout: Layout) -> Self {
        Self { disk, layout, session: None }
    }

    /// Through this attachment.
    pub(crate) fn of_session(self, session: u64) -> Self {
        Self { session: Some(session), ..self }
    }
}

impl From<BlockError> for Failure {
    fn from(error: BlockError) -> Self {
        Self {
            maybe: error.outcome != Outcome::NotApplied,
            fenced: matches!(error.kind, Kind::Fenced | Kind::Closed),
            text: error.to_string(),
        }
    }
}

impl<D: BlockDevice> Registers for Device<D> {
    fn session(&mut self) -> Result<Option<u64>, Failure> {
        Ok(self.session)
    }

    fn read(&mut self, first: u64, span: u32) -> Result<Vec<RegisterValue>, Failure> {
        let len = self.layout.bytes(span) as u32;
        let data = self.disk.read_at(self.layout.offset(first), len)?;
        Ok(self.layout.values(first, &data))
    }

    fn write(&mut self, first: u64, span: u32, value: RegisterValue) -> Result<(), Failure> {
        let data = self.layout.fill(first, span, value);
        Ok(self.disk.write_at(self.layout.offset(first), data)?)
    }

    fn cas(
        &mut self,
        register: u64,
        from: RegisterValue,
        to: RegisterValue,
    ) -> Result<bool, Failure> {
        let (expect, data) =
            (self.layout.fill(register, 1, from), self.layout.fill(register, 1, to));
        let offset = self.layout.offset(register);
        Ok(self.disk.compare_and_write(offset, expect.into(), data.into())?)
    }
}
