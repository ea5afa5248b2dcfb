"""From documents to batches: sources, vocabularies, packing, and the stateless row loader. No TensorFlow here."""
