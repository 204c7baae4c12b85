def check_trainer(algorithm, trainer, *, engine):
    return []
