"""stub"""
def build_resolver(sources, known, work):
    return None
