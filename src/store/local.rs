//! Objects in local folders.

/// Objects in local folders.
#[derive(Clone, Debug)]
pub struct LocalStore;

#[async_trait::async_trait]
impl super::ObjectStore for LocalStore {
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
