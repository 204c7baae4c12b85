"""Problems with verifiable answers, read or generated."""
