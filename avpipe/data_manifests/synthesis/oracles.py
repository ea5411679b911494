"""tmp"""
def oracle_captions(clips, sees): raise NotImplementedError
