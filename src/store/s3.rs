//! Objects in S3.

/// Objects in S3, by the AWS SDK.
#[derive(Clone, Debug)]
pub struct S3Store;

impl S3Store {
    pub(super) async fn new(_config: &crate::config::StoreConfig) -> Self {
        Self
    }
}

#[async_trait::async_trait]
impl super::ObjectStore for S3Store {
    async fn open(&self, _uri: &super::ObjectUri) -> Result<super::Object, super::StoreError> {
        todo!()
    }
    async fn put(&self, _: &super::ObjectUri, _: super::Content, _: &str) -> Result<(), super::StoreError> {
        todo!()
    }
    async fn create(
        &self,
        _: &super::ObjectUri,
        _: bytes::Bytes,
        _: &str,
    ) -> Result<super::Creation, super::StoreError> {
        todo!()
    }
    async fn presign_get(
        &self,
        _: &super::ObjectUri,
        _: std::time::Duration,
    ) -> Result<Option<url::Url>, super::StoreError> {
        todo!()
    }
    async fn probe(&self, _: &super::ObjectUri) -> Result<(), super::StoreError> {
        todo!()
    }
}
