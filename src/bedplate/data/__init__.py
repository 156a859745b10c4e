"""Documents from files, tokenizers, packed token shards and the order in which a run reads them."""
